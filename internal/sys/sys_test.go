package sys

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func tempFile(t *testing.T) *os.File {
	t.Helper()
	f, err := Open(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestWholeTransferFinishesShortOnes(t *testing.T) {
	var got []byte
	calls := 0
	err := whole("write", []byte("abcdefg"), 100, func(p []byte, off int64) (int, error) {
		calls++
		if calls == 2 {
			return 0, syscall.EINTR
		}
		if off != 100+int64(len(got)) {
			t.Errorf("call %d at offset %d, want %d", calls, off, 100+len(got))
		}
		n := min(3, len(p))
		got = append(got, p[:n]...)
		return n, nil
	})
	if err != nil || string(got) != "abcdefg" || calls != 4 {
		t.Errorf("err %v, wrote %q in %d calls", err, got, calls)
	}
}

func TestReadBeyondEndFails(t *testing.T) {
	f := tempFile(t)
	if err := WriteFullAt(int(f.Fd()), []byte("0123"), 0); err != nil {
		t.Fatal(err)
	}
	err := ReadFullAt(int(f.Fd()), make([]byte, 8), 0)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read beyond the end: %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

func TestOpenDoesNotWaitForFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestFlock(t *testing.T) {
	a := tempFile(t)
	b, err := Open(a.Name(), os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := FlockShared(int(a.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := FlockShared(int(b.Fd())); err != nil {
		t.Errorf("second shared lock: %v", err)
	}
	if err := FlockExclusive(int(b.Fd())); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("exclusive beside shared: %v, want EWOULDBLOCK", err)
	}
}

func TestHolesAndReserve(t *testing.T) {
	f := tempFile(t)
	fd := int(f.Fd())
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := Data(fd, 0); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("data in an empty file: %v, want ENXIO", err)
	}
	if err := WriteFullAt(fd, bytes.Repeat([]byte{1}, 4096), 512<<10); err != nil {
		t.Fatal(err)
	}
	if off, err := Data(fd, 0); err != nil || off != 512<<10 {
		t.Errorf("Data(0) = %d, %v, want %d", off, err, 512<<10)
	}
	if off, err := Hole(fd, 512<<10); err != nil || off != 512<<10+4096 {
		t.Errorf("Hole = %d, %v, want %d", off, err, 512<<10+4096)
	}
	if err := Reserve(fd, 2<<20); err != nil {
		t.Fatal(err)
	}
	st, err := Fstat(fd)
	if err != nil || st.Size != 2<<20 || !st.IsRegular() || st.IsBlock() {
		t.Errorf("after Reserve: %+v, %v", st, err)
	}
	if err := PunchHole(fd, 512<<10, 4096); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	if err := ReadFullAt(fd, b, 512<<10); err != nil || !bytes.Equal(b, make([]byte, 4096)) {
		t.Errorf("punched range does not read as zeros (%v)", err)
	}
}

func TestStatPathAgreesWithFstat(t *testing.T) {
	f := tempFile(t)
	a, err := Fstat(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	b, err := StatPath(f.Name())
	if err != nil || a != b {
		t.Errorf("Fstat %+v, StatPath %+v, %v", a, b, err)
	}
}

func TestMappingIsAlignedAndTyped(t *testing.T) {
	m, err := Map(5000, true)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	if len(m.Bytes())%page != 0 || len(m.Bytes()) < 5000 {
		t.Errorf("mapping of 5000 bytes has %d", len(m.Bytes()))
	}
	words := As[uint64](m)
	words[1] = 0x0102030405060708
	if len(words) != len(m.Bytes())/8 || m.Bytes()[8] == 0 {
		t.Errorf("%d words over %d bytes, byte 8 is %d", len(words), len(m.Bytes()), m.Bytes()[8])
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestPeerUID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	uid, err := PeerUID(s)
	if err != nil || int(uid) != os.Getuid() {
		t.Errorf("PeerUID = %d, %v, want %d", uid, err, os.Getuid())
	}
}

func TestFSIDAndDirectAlign(t *testing.T) {
	f := tempFile(t)
	id, err := FSID(int(f.Fd()))
	if err != nil || len(id) == 0 {
		t.Errorf("FSID = %x, %v", id, err)
	}
	mem, off, known, err := DirectAlign(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if known && (mem&(mem-1) != 0 || off&(off-1) != 0) {
		t.Errorf("alignment %d and %d are not powers of two", mem, off)
	}
}

func TestGiveBack(t *testing.T) {
	page := os.Getpagesize()
	m, err := Map(4*page, false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for i := range m.Bytes() {
		m.Bytes()[i] = 1
	}
	pages := As[[4096]byte](m)
	if err := GiveBack(&pages[1]); err != nil {
		t.Fatal(err)
	}
	if page != len(pages[1]) {
		t.Skipf("pages of %d bytes: nothing is given back", page)
	}
	if pages[0][4095] != 1 || pages[1] != [4096]byte{} || pages[2][0] != 1 {
		t.Error("page 1 does not read as zeros, or another does")
	}
	if err := GiveBack(&m.Bytes()[7]); err != nil || m.Bytes()[7] != 1 {
		t.Errorf("a byte: %v, now %d", err, m.Bytes()[7])
	}
}

// TestSpaceOfFileSystem: what is free on tmpfs is no more than its size, and tmpfs writes in place.
func TestSpaceOfFileSystem(t *testing.T) {
	f, err := os.CreateTemp("/dev/shm", "space")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil { // it lives while it is open
		t.Fatal(err)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &st); err != nil {
		t.Fatal(err)
	}
	free, err := Free(int(f.Fd()))
	if err != nil || free <= 0 || free > int64(st.Blocks)*st.Bsize {
		t.Errorf("%d bytes free of %d (%v)", free, int64(st.Blocks)*st.Bsize, err)
	}
	if moves, err := CopiesOnWrite(int(f.Fd())); moves || err != nil {
		t.Errorf("tmpfs copies on write: %t (%v)", moves, err)
	}
}
