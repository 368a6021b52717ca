//go:build device

package devicetest

import (
	"fmt"
	"hash/crc64"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// volume is a device or file, open for direct I/O.
type volume struct {
	m    *machine
	path string
	f    *os.File
	size int64 // bytes
	file bool  // not a device
}

// open opens a device or file for direct I/O; it is closed when the test ends, or by close.
func (m *machine) open(path string, flags int) *volume {
	m.Helper()
	return m.openCached(path, flags|unix.O_DIRECT)
}

// openCached is open for I/O through the page cache.
func (m *machine) openCached(path string, flags int) *volume {
	m.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { f.Close() })
	size, err := f.Seek(0, 2)
	if err != nil {
		m.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		m.Fatal(err)
	}
	return &volume{m: m, path: path, f: f, size: size, file: info.Mode().IsRegular()}
}

func (v *volume) close() {
	v.m.Helper()
	if err := v.f.Close(); err != nil {
		v.m.Fatal(err)
	}
}

func (v *volume) fd() int { return int(v.f.Fd()) }

func (v *volume) read(b []byte, off int64) error { return sys.ReadFullAt(v.fd(), b, off) }

func (v *volume) write(b []byte, off int64) error { return sys.WriteFullAt(v.fd(), b, off) }

// writeDurable is a write with FUA.
func (v *volume) writeDurable(b []byte, off int64) error {
	n, err := unix.Pwritev2(v.fd(), [][]byte{b}, off, unix.RWF_DSYNC)
	if err == nil && n != len(b) {
		err = fmt.Errorf("wrote %d of %d bytes", n, len(b))
	}
	return err
}

// flush is a FLUSH on a device.
func (v *volume) flush() error { return sys.Fdatasync(v.fd()) }

// zero is WRITE_ZEROES.
func (v *volume) zero(off, length int64) error {
	if v.file {
		return sys.ZeroRange(v.fd(), off, length)
	}
	return sys.ZeroOut(v.fd(), off, length)
}

// discard is BLKDISCARD, which nothing but these tests asks for; in a file it makes a hole.
func (v *volume) discard(off, length int64) error {
	if v.file {
		return sys.PunchHole(v.fd(), off, length)
	}
	r := [2]uint64{uint64(off), uint64(length)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd()), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r)))
	if errno != 0 {
		return fmt.Errorf("discard %d bytes at %d: %w", length, off, errno)
	}
	return nil
}

// buffer is memory for direct I/O, there until the test ends.
func (m *machine) buffer(size int) []byte {
	m.Helper()
	b, free := m.scratch(size)
	m.Cleanup(free)
	return b
}

// scratch is buffer that is given back by free.
func (m *machine) scratch(size int) (b []byte, free func()) {
	m.Helper()
	mapping, err := sys.Map(size, true)
	if err != nil {
		m.Fatal(err)
	}
	return mapping.Bytes()[:size], func() { mapping.Close() }
}

// ioSize is the largest request that the tests make, in bytes.
const ioSize = 1 << 20

// sweep reads the first size bytes of a device or file in order.
func (m *machine) sweep(path string, size int64, visit func(off int64, b []byte) error) {
	m.Helper()
	m.sweepRange(path, 0, size, visit)
}

// sweepRange reads the bytes [first, end) of a device or file in order.
func (m *machine) sweepRange(path string, first, end int64, visit func(off int64, b []byte) error) {
	m.Helper()
	v := m.open(path, os.O_RDONLY)
	defer v.close()
	buf, free := m.scratch(ioSize)
	defer free()
	for off := first; off < end; off += ioSize {
		b := buf[:min(ioSize, end-off)]
		if err := v.read(b, off); err != nil {
			m.Fatalf("%s: %v", path, err)
		}
		if err := visit(off, b); err != nil {
			m.Fatalf("%s: %v", path, err)
		}
	}
}

// ecma: CRC-64 by table is the fastest checksum of the standard library where the CPU is emulated.
var ecma = crc64.MakeTable(crc64.ECMA)

// sum is a checksum of the first size bytes of a device or file, a value for each MiB.
func (m *machine) sum(path string, size int64) []uint64 {
	m.Helper()
	var sums []uint64
	m.sweep(path, size, func(_ int64, b []byte) error {
		sums = append(sums, crc64.Checksum(b, ecma))
		return nil
	})
	return sums
}

// same fails the test unless two sums are equal.
func (m *machine) same(what string, got, want []uint64) {
	m.Helper()
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			m.Fatalf("%s: MiB %d differs", what, i)
		}
	}
}
