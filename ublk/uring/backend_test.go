package uring

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestLoopReadsAndWritesWhole(t *testing.T) {
	for name, flags := range map[string]int{"buffered": 0, "direct": unix.O_DIRECT} {
		t.Run(name, func(t *testing.T) {
			l, r := newTestLoop(t, LoopOptions{Tokens: 4})
			f := l.Open(newTestFile(t, openTestFile(t, t.TempDir(), flags)), 0)
			b := mapTestBuffer(t, 1<<20)
			for i := range b {
				b[i] = byte(i >> 8)
			}
			f.Write(3, 4096, Memory(b), true)
			if e := r.until(t, l, 1)[0]; e != (ended{3, nil}) {
				t.Fatalf("write: %v", e)
			}
			f.Flush(0)
			if e := r.until(t, l, 1)[0]; e != (ended{0, nil}) {
				t.Fatalf("flush: %v", e)
			}
			in := mapTestBuffer(t, 1<<20)
			f.Read(1, 4096, Memory(in))
			if e := r.until(t, l, 1)[0]; e != (ended{1, nil}) {
				t.Fatalf("read: %v", e)
			}
			if !bytes.Equal(in, b) {
				t.Error("read other bytes than were written")
			}
		})
	}
}

// TestOpenFixed: all that a port does goes to the registered file, whatever has its descriptor now;
// a second one is a plain port.
func TestOpenFixed(t *testing.T) {
	lockThread(t)
	r := &recorder{}
	l, err := NewLoop(r, LoopOptions{Tokens: 1})
	must(t, err)
	f, other := openTestFile(t, t.TempDir(), 0), openTestFile(t, t.TempDir(), 0)
	must(t, f.Truncate(1<<20))
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	fixed := l.OpenFixed(newTestFile(t, f), 0)
	plain := l.OpenFixed(newTestFile(t, other), 0)
	b := mapTestBuffer(t, 8192)
	fill(b, 0xff)
	plain.Write(0, 0, Memory(b[:4096]), false)
	must(t, r.one(t, l))
	must(t, unix.Dup3(int(other.Fd()), int(f.Fd()), 0)) // the descriptor is another file's

	fixed.Write(0, 0, Memory(b), true)
	must(t, r.one(t, l))
	fixed.Zero(0, 0, 1024, true)
	must(t, r.one(t, l))
	fixed.Zero(0, 1024, 1024, false)
	must(t, r.one(t, l))
	fixed.Discard(0, 4096, 4096)
	must(t, r.one(t, l))
	fixed.Flush(0)
	must(t, r.one(t, l))
	fixed.Read(0, 0, Memory(b))
	must(t, r.one(t, l))
	if want := append(make([]byte, 2048), fill(make([]byte, 2048), 0xff)...); !bytes.Equal(b, append(want, make([]byte, 4096)...)) {
		t.Error("the registered file holds other bytes")
	}
	if st, err := other.Stat(); err != nil || st.Size() != 4096 {
		t.Errorf("the other file has %d bytes, %v", st.Size(), err)
	}
	again, err := os.Open(f.Name())
	must(t, err)
	defer again.Close()
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("the registered file is not open any more: %v", err)
	}
}

// TestFixedIsLetGo: a loop that is closed has let its registered file go, and with it the locks. (A
// kernel's worker, which does what might wait, has a hold of the file for a moment longer,
// registered or not. No worker is needed here.)
func TestFixedIsLetGo(t *testing.T) {
	lockThread(t)
	l, err := NewLoop(&recorder{}, LoopOptions{Tokens: 1})
	must(t, err)
	f := openTestFile(t, t.TempDir(), 0)
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	l.OpenFixed(newTestFile(t, f), 0)
	again, err := os.Open(f.Name())
	must(t, err)
	defer again.Close()
	must(t, f.Close())
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("the registered file is not open any more: %v", err)
	}
	must(t, l.Close())
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("the loop is closed, and its file not: %v", err)
	}
}

// TestShortReads reads from a pipe that gives a few bytes at a time.
func TestShortReads(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1})
	pr, pw := testPipe(t)
	b := mapTestBuffer(t, 4096)
	l.Open(newTestFile(t, pr), 0).Read(0, 0, Memory(b[:10]))
	for i, piece := range []string{"abc", "defg", "hi"} {
		if _, err := pw.WriteString(piece); err != nil {
			t.Fatal(err)
		}
		l.round()
		if len(r.ends) != 0 {
			t.Fatalf("ended after %d pieces: %v", i+1, r.ends)
		}
	}
	if _, err := pw.WriteString("jkl"); err != nil {
		t.Fatal(err)
	}
	if err := r.one(t, l); err != nil || string(b[:10]) != "abcdefghij" {
		t.Errorf("read %q, %v", b[:10], err)
	}
}

func TestShortWrites(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1})
	pr, pw := testPipe(t)
	const length = 1 << 20 // more than a pipe holds
	b := mapTestBuffer(t, length)
	for i := range b {
		b[i] = byte(i >> 12)
	}
	got := make(chan []byte)
	go func() {
		in := make([]byte, length)
		_, err := io.ReadFull(pr, in)
		if err != nil {
			t.Error(err)
		}
		got <- in
	}()
	l.Open(newTestFile(t, pw), 0).Write(0, 0, Memory(b), false)
	if err := r.one(t, l); err != nil {
		t.Fatalf("write: %v", err)
	}
	if !bytes.Equal(<-got, b) {
		t.Error("other bytes arrived than were written")
	}
}

func TestReadPastEnd(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1})
	f := openTestFile(t, t.TempDir(), 0)
	must(t, f.Truncate(1000))
	b := mapTestBuffer(t, 4096)
	l.Open(newTestFile(t, f), 0).Read(0, 0, Memory(b))
	if err := r.one(t, l); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read past the end: %v", err)
	}
}

// TestAdvance is the table of what a result leads to.
func TestAdvance(t *testing.T) {
	errno := func(e unix.Errno) int32 { return -int32(e) }
	for _, c := range []struct {
		name   string
		op     operation
		res    int32
		again  bool
		err    error
		step   step  // afterwards, if again
		off    int64 // afterwards
		length int64
	}{
		{"read whole", operation{step: stepRead, off: 10, length: 8}, 8, false, nil, 0, 18, 0},
		{"read part", operation{step: stepRead, off: 10, length: 8}, 3, true, nil, stepRead, 13, 5},
		{"read at the end", operation{step: stepRead, off: 10, length: 8}, 0, false, io.ErrUnexpectedEOF, 0, 10, 8},
		{"write part", operation{step: stepWrite, off: 10, length: 8}, 7, true, nil, stepWrite, 17, 1},
		{"write nothing", operation{step: stepWrite, off: 10, length: 8}, 0, false, io.ErrShortWrite, 0, 10, 8},
		{"write EIO", operation{step: stepWrite, off: 10, length: 8}, errno(unix.EIO), false, unix.EIO, 0, 10, 8},
		{"write EINTR", operation{step: stepWrite, off: 10, length: 8}, errno(unix.EINTR), true, nil, stepWrite, 10, 8},
		{"read EAGAIN", operation{step: stepRead, off: 10, length: 8}, errno(unix.EAGAIN), true, nil, stepRead, 10, 8},
		{"read EAGAIN for good", operation{step: stepRead, off: 10, length: 8, given: 1000}, errno(unix.EAGAIN), false, unix.EAGAIN, 0, 10, 8},
		{"flush given up", operation{step: stepFlush, length: 1}, errno(unix.ECANCELED), true, nil, stepFlush, 0, 1},
		{"flush given up for good", operation{step: stepFlush, length: 1, given: 1000}, errno(unix.ECANCELED), false, unix.ECANCELED, 0, 0, 1},
		{"flush", operation{step: stepFlush, length: 1}, 0, false, nil, 0, 0, 1},
		{"flush EIO", operation{step: stepFlush, length: 1}, errno(unix.EIO), false, unix.EIO, 0, 0, 1},
		{"flush EINVAL", operation{step: stepFlush, length: 1}, errno(unix.EINVAL), false, unix.EINVAL, 0, 0, 1},
		{"punch", operation{step: stepPunch, length: 8}, 0, false, nil, 0, 0, 8},
		{"punch unknown", operation{step: stepPunch, length: 8}, errno(unix.EOPNOTSUPP), true, nil, stepZeroRange, 0, 8},
		{"punch EIO", operation{step: stepPunch, length: 8}, errno(unix.EIO), false, unix.EIO, 0, 0, 8},
		{"zero range unknown", operation{step: stepZeroRange, length: 8}, errno(unix.EOPNOTSUPP), true, nil, stepZeroWrite, 0, 8},
		{"zero range ENOSPC", operation{step: stepZeroRange, length: 8}, errno(unix.ENOSPC), false, unix.ENOSPC, 0, 0, 8},
		{"zeros in pieces", operation{step: stepZeroWrite, length: 3 << 20}, 1 << 20, true, nil, stepZeroWrite, 1 << 20, 2 << 20},
		{"zeros, the last piece", operation{step: stepZeroWrite, off: 5, length: 512}, 512, false, nil, 0, 517, 0},
		{"zeros unknown", operation{step: stepZeroWrite, length: 8}, errno(unix.EOPNOTSUPP), false, unix.EOPNOTSUPP, 0, 0, 8},
		{"discard", operation{step: stepDiscard, length: 8}, 0, false, nil, 0, 0, 8},
		{"discard without a wait", operation{step: stepDiscard, length: 8}, errno(unix.EOPNOTSUPP), true, nil, stepDiscard, 0, 8},
		{"discard unknown", operation{step: stepDiscard, length: 8, wait: true}, errno(unix.EOPNOTSUPP), false, nil, 0, 0, 8},
		{"discard before 6.12", operation{step: stepDiscard, length: 8}, errno(unix.EINVAL), false, nil, 0, 0, 8},
		{"discard EIO", operation{step: stepDiscard, length: 8}, errno(unix.EIO), false, unix.EIO, 0, 0, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			op := c.op
			op.port = &Port{file: &File{}}
			moves := op.step == stepRead || op.step == stepWrite
			if moves {
				op.data = Registered(0, 0, op.length)
			}
			again, err := op.advance(c.res)
			if again != c.again || !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
				t.Errorf("again %v, error %v; want %v, %v", again, err, c.again, c.err)
			}
			if op.off != c.off || op.length != c.length {
				t.Errorf("left %d bytes at %d, want %d at %d", op.length, op.off, c.length, c.off)
			}
			if again && op.step != c.step {
				t.Errorf("goes on with step %d, want %d", op.step, c.step)
			}
			if moved := c.op.length - op.length; moves && (op.data.Len() != op.length || op.data.at != uint64(moved)) {
				t.Errorf("%d bytes from byte %d on, for %d that are left after %d", op.data.Len(), op.data.at, op.length, moved)
			}
		})
	}
}

// zeroCase is a file of three parts filled with 0xff, of which the middle one is zeroed.
const zeroPart = 2<<20 + 4096

func zeroCase(t *testing.T, dir string, prepare func(*File), unmap bool) (file *File, blocks int64) {
	t.Helper()
	l, r := newTestLoop(t, LoopOptions{Tokens: 1})
	f := openTestFile(t, dir, 0)
	must(t, os.WriteFile(f.Name(), fill(make([]byte, 3*zeroPart), 0xff), 0o600))
	must(t, f.Sync())
	file = newTestFile(t, f)
	if prepare != nil {
		prepare(file)
	}
	l.Open(file, 0).Zero(0, zeroPart, zeroPart, unmap)
	if err := r.one(t, l); err != nil {
		t.Fatalf("zero: %v", err)
	}
	got, err := os.ReadFile(f.Name())
	must(t, err)
	want := fill(make([]byte, 3*zeroPart), 0xff)
	clear(want[zeroPart : 2*zeroPart])
	if !bytes.Equal(got, want) {
		t.Error("the file is not zeros in the middle and as it was elsewhere")
	}
	must(t, f.Sync())
	var st unix.Stat_t
	must(t, unix.Fstat(file.fd, &st))
	return file, st.Blocks * 512
}

func TestZero(t *testing.T) {
	onDisk, inMemory := t.TempDir(), memoryDir(t)
	for _, c := range []struct {
		name             string
		dir              string
		prepare          func(*File)
		unmap, allocated bool
		noPunch, noRange bool
	}{
		{"punched", onDisk, nil, true, false, false, false},
		{"zero range", onDisk, nil, false, true, false, false},
		{"punch not offered", onDisk, func(f *File) { f.noPunch.Store(true) }, true, true, true, false},
		{"nothing offered", onDisk, func(f *File) { f.noPunch.Store(true); f.noZeroRange.Store(true) }, true, true, true, true},
		{"tmpfs punched", inMemory, nil, true, false, false, false},
		{"tmpfs zeroed", inMemory, nil, false, true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			noRange := c.noRange || c.allocated && onTmpfs(t, c.dir) // it has none; temporary files are there in a guest
			f, bytes := zeroCase(t, c.dir, c.prepare, c.unmap)
			if got := bytes >= 3*zeroPart; got != c.allocated {
				t.Errorf("the file has %d bytes of space, allocated throughout: %v, want %v", bytes, got, c.allocated)
			}
			if f.noPunch.Load() != c.noPunch || f.noZeroRange.Load() != noRange {
				t.Errorf("remembered: no punch %v, no zero range %v; want %v, %v",
					f.noPunch.Load(), f.noZeroRange.Load(), c.noPunch, noRange)
			}
		})
	}
}

// memoryDir is a directory on tmpfs.
func memoryDir(t *testing.T) string {
	t.Helper()
	if !onTmpfs(t, "/dev/shm") {
		t.Fatal("/dev/shm is no tmpfs")
	}
	dir, err := os.MkdirTemp("/dev/shm", "uring")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

func onTmpfs(t *testing.T, dir string) bool {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return st.Type == unix.TMPFS_MAGIC
}

func TestDiscard(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1})
	f := openTestFile(t, t.TempDir(), 0)
	must(t, os.WriteFile(f.Name(), fill(make([]byte, 1<<20), 1), 0o600))
	l.Open(newTestFile(t, f), 0).Discard(0, 0, 1<<20)
	if err := r.one(t, l); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Blocks*512 >= 1<<20 || st.Size != 1<<20 {
		t.Errorf("after the discard %d bytes of space and size %d", st.Blocks*512, st.Size)
	}
}

// TestNothingToDo: an operation of no length ends, but not within the call.
func TestNothingToDo(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 2})
	f := l.Open(newTestFile(t, openTestFile(t, t.TempDir(), 0)), 0)
	f.Read(0, 0, Memory(nil))
	f.Zero(1, 0, 0, true)
	if len(r.ends) != 0 {
		t.Error("ended within the call")
	}
	l.round()
	if len(r.ends) != 2 || r.ends[0] != (ended{0, nil}) || r.ends[1] != (ended{1, nil}) {
		t.Errorf("ended: %v", r.ends)
	}
}

// TestRefuse: what is refused ends with its errno, not within the call, and the token is free then.
func TestRefuse(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1})
	for range 2 {
		l.Refuse(0, unix.ENODEV)
		if len(r.ends) != 0 {
			t.Error("ended within the call")
		}
		if err := r.one(t, l); err != unix.ENODEV {
			t.Errorf("ended with %v", err)
		}
		r.ends = nil
	}
}

// TestReadAlone: it reads, and its entry has a priority that other reads, also those of another
// loop, have not.
func TestReadAlone(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1})
	other, _ := newTestLoop(t, LoopOptions{Tokens: 1})
	f := openTestFile(t, t.TempDir(), 0)
	must(t, os.WriteFile(f.Name(), fill(make([]byte, 4096), 0xff), 0o600))
	buf := mapTestBuffer(t, 4096)
	l.Open(newTestFile(t, f), 0).ReadAlone(0, 0, Memory(buf))
	last := (l.ring.sq.prepared - 1) & l.ring.sq.mask * l.ring.sq.stride
	got := (*sqe)(unsafe.Pointer(&l.ring.sq.sqes[last])).ioprio
	if got == 0 || got != l.alonePriority || got == other.alonePriority {
		t.Errorf("priority %#x, the loops' are %#x and %#x", got, l.alonePriority, other.alonePriority)
	}
	if err := r.one(t, l); err != nil || buf[4095] != 0xff {
		t.Errorf("read %x: %v", buf[4095], err)
	}
}

func TestTokenInUse(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1})
	f := l.Open(newTestFile(t, openTestFile(t, t.TempDir(), 0)), 0)
	f.Flush(0)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a second operation on the token was taken")
			}
		}()
		f.Flush(0)
	}()
	if err := r.one(t, l); err != nil {
		t.Error(err)
	}
}

// TestDataRange: a stretch that is not in the bytes is nobody's to write to.
func TestDataRange(t *testing.T) {
	for _, c := range []struct{ at, n int64 }{{-1, 1}, {0, -1}, {1, 8192}, {8193, 0}, {math.MaxInt64, 1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%d bytes at %d of 8192 can be had", c.n, c.at)
				}
			}()
			Registered(0, 0, 8192).Slice(c.at, c.n)
		}()
	}
}

// TestRegisteredData: a stretch of a registered buffer is addressed by its place in it, and what a
// short result leaves by the place behind.
func TestRegisteredData(t *testing.T) {
	d := Registered(3, 4096, 8192).Slice(512, 1024)
	if d.Len() != 1024 {
		t.Errorf("%+v", d)
	}
	var s sqe
	s.opcode = opRead
	s.move(d, opReadFixed)
	if s.opcode != opReadFixed || s.bufIndex != 3 || s.addr != 4608 || s.len != 1024 {
		t.Errorf("entry %+v", s)
	}
	op := operation{step: stepRead, data: d, length: d.Len()}
	if again, err := op.advance(512); !again || err != nil || op.data.slot != 3 || op.data.at != 5120 || op.data.length != 512 {
		t.Errorf("after a short read: %+v, again %v, %v", op.data, again, err)
	}
}
