package uring

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lockThread keeps the test on one thread, as a ring demands.
func lockThread(t testing.TB) {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
}

func newTestRing(t testing.TB, o Options) *Ring {
	t.Helper()
	lockThread(t)
	r, err := NewRing(o)
	if err != nil {
		t.Fatalf("make ring: %v", err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close ring: %v", err)
		}
	})
	return r
}

func mapTestBuffer(t testing.TB, length int) []byte {
	t.Helper()
	b, err := MapBuffer(length)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := UnmapBuffer(b); err != nil {
			t.Error(err)
		}
	})
	return b
}

// reap takes what is ready.
func reap(r *Ring) []Completion {
	var all []Completion
	for c, ok := r.Next(); ok; c, ok = r.Next() {
		all = append(all, c)
	}
	return all
}

// one submits what is prepared and returns the one completion it leads to.
func (r *Ring) one(t *testing.T) Completion {
	t.Helper()
	if err := r.Enter(1, false); err != nil {
		t.Fatalf("enter: %v", err)
	}
	all := reap(r)
	if len(all) != 1 {
		t.Fatalf("%d completions, want 1: %+v", len(all), all)
	}
	return all[0]
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestABI(t *testing.T) {
	var s sqe
	var c cqe
	var p params
	for _, f := range []struct {
		name      string
		got, want uintptr
	}{
		{"sqe.fd", unsafe.Offsetof(s.fd), 4},
		{"sqe.off", unsafe.Offsetof(s.off), 8},
		{"sqe.addr", unsafe.Offsetof(s.addr), 16},
		{"sqe.len", unsafe.Offsetof(s.len), 24},
		{"sqe.rw_flags", unsafe.Offsetof(s.opFlags), 28},
		{"sqe.user_data", unsafe.Offsetof(s.userData), 32},
		{"sqe.buf_index", unsafe.Offsetof(s.bufIndex), 40},
		{"sqe.file_index", unsafe.Offsetof(s.fileIndex), 44},
		{"sqe.addr3", unsafe.Offsetof(s.addr3), 48},
		{"cqe.res", unsafe.Offsetof(c.res), 8},
		{"params.features", unsafe.Offsetof(p.features), 20},
		{"params.sq_off", unsafe.Offsetof(p.sqOff), 40},
		{"params.sq_off.array", unsafe.Offsetof(p.sqOff) + unsafe.Offsetof(p.sqOff.array), 64},
		{"params.cq_off", unsafe.Offsetof(p.cqOff), 80},
		{"params.cq_off.cqes", unsafe.Offsetof(p.cqOff) + unsafe.Offsetof(p.cqOff.cqes), 100},
	} {
		if f.got != f.want {
			t.Errorf("offset of %s is %d, want %d", f.name, f.got, f.want)
		}
	}
	if cmdDiscard != 0x1200 {
		t.Errorf("BLOCK_URING_CMD_DISCARD is %#x, want 0x1200", cmdDiscard)
	}
}

func TestFlags(t *testing.T) {
	for _, big := range []bool{false, true} {
		r := newTestRing(t, Options{Entries: 8, BigSQE: big})
		if got := r.flags&setupSQE128 != 0; got != big {
			t.Errorf("ring with BigSQE %v has flags %#x", big, r.flags)
		}
		must(t, r.Nop(7))
		if c := r.one(t); c != (Completion{UserData: 7}) {
			t.Errorf("NOP completed as %+v", c)
		}
	}
}

func TestSetUpRefused(t *testing.T) {
	lockThread(t)
	if r, err := NewRing(Options{Entries: 1 << 20}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a ring of 2^20 entries: %v, %v; want EINVAL", r, err)
	}
}

// FuzzRing prepares, submits and reaps NOPs as the input says, and checks that each comes back
// once, in order, and that the counts are those of a model. Queues are small, so that they wrap and
// fill; when the submission queue is full, preparing submits.
func FuzzRing(f *testing.F) {
	f.Add(uint8(3), []byte{1, 2, 3, 200, 100, 0, 77, 130})
	f.Add(uint8(0), bytes.Repeat([]byte{9, 70, 133}, 40))
	f.Add(uint8(5), bytes.Repeat([]byte{63, 63, 64, 128}, 8))
	f.Fuzz(func(t *testing.T, order uint8, script []byte) {
		r := newTestRing(t, Options{Entries: 1 << (order % 6)})
		var prepared, reaped uint64
		take := func() {
			for c, ok := r.Next(); ok; c, ok = r.Next() {
				if c.UserData != reaped || c.Res != 0 {
					t.Fatalf("completion %+v, want user data %d", c, reaped)
				}
				reaped++
			}
		}
		for _, b := range script {
			switch n := uint64(b & 63); b >> 6 {
			case 0, 1: // prepare n
				for range n {
					if err := r.Nop(prepared); errors.Is(err, ErrFull) {
						take()
						continue
					} else if err != nil {
						t.Fatalf("prepare: %v", err)
					}
					prepared++
				}
			case 2: // submit, wait for up to n
				outstanding := prepared - reaped
				wait := min(n, outstanding, uint64(r.cq.mask)+1)
				if err := r.Enter(uint32(wait), n&1 == 0); err != nil && !errors.Is(err, unix.EBUSY) {
					t.Fatalf("enter: %v", err)
				}
			case 3:
				take()
			}
			if p := uint64(r.Pending()); p > uint64(r.sq.entries) {
				t.Fatalf("%d entries pending in a queue of %d", p, r.sq.entries)
			}
		}
		for reaped != prepared {
			if err := r.Enter(0, false); err != nil && !errors.Is(err, unix.EBUSY) {
				t.Fatalf("enter: %v", err)
			}
			take()
		}
	})
}

// TestOverflow lets more complete than the completion queue holds: nothing may be lost.
func TestOverflow(t *testing.T) {
	r := newTestRing(t, Options{Entries: 4, CompletionEntries: 4})
	const n = 100
	seen := make([]int, n)
	take := func() {
		for _, c := range reap(r) {
			seen[c.UserData]++
		}
	}
	for i := range uint64(n) {
		for errors.Is(r.Nop(i), ErrFull) {
			take()
		}
	}
	for r.Pending() > 0 || sum(seen) < n {
		if err := r.Enter(0, false); err != nil && !errors.Is(err, unix.EBUSY) {
			t.Fatalf("enter: %v", err)
		}
		take()
	}
	for i, times := range seen {
		if times != 1 {
			t.Errorf("NOP %d came back %d times", i, times)
		}
	}
}

func sum(v []int) (total int) {
	for _, n := range v {
		total += n
	}
	return total
}

func openTestFile(t testing.TB, dir string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "file"), os.O_RDWR|os.O_CREATE|flags, 0o600)
	if err != nil {
		t.Fatalf("open with flags %#x: %v", flags, err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestReadWrite(t *testing.T) {
	for name, flags := range map[string]int{"buffered": 0, "direct": unix.O_DIRECT} {
		t.Run(name, func(t *testing.T) {
			r := newTestRing(t, Options{Entries: 4})
			f := openTestFile(t, t.TempDir(), flags)
			b := mapTestBuffer(t, 8192)
			out, in := b[:4096], b[4096:]
			for i := range out {
				out[i] = byte(i * 7)
			}
			must(t, r.Write(int(f.Fd()), 8192, Memory(out), unix.RWF_DSYNC, 1))
			if c := r.one(t); c != (Completion{1, 4096}) {
				t.Fatalf("write: %+v", c)
			}
			must(t, r.Read(int(f.Fd()), 8192, Memory(in), 0, 2))
			if c := r.one(t); c != (Completion{2, 4096}) {
				t.Fatalf("read: %+v", c)
			}
			if !bytes.Equal(in, out) {
				t.Error("read other bytes than were written")
			}
			must(t, r.Fdatasync(int(f.Fd()), 3))
			if c := r.one(t); c != (Completion{3, 0}) {
				t.Errorf("fdatasync: %+v", c)
			}
			must(t, r.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8192, 4096, 4))
			if c := r.one(t); c != (Completion{4, 0}) {
				t.Fatalf("fallocate: %+v", c)
			}
			must(t, r.Read(int(f.Fd()), 8192, Memory(in), 0, 5))
			if c := r.one(t); c.Res != 4096 || !bytes.Equal(in, make([]byte, 4096)) {
				t.Errorf("read of the hole: %+v, or not zeros", c)
			}
		})
	}
}

func TestResultsAreErrnos(t *testing.T) {
	r := newTestRing(t, Options{Entries: 4})
	f := openTestFile(t, t.TempDir(), 0)
	must(t, r.Command(int(f.Fd()), 1, 0, make([]byte, 16), 1))
	if c := r.one(t); c.Res != -int32(unix.EOPNOTSUPP) {
		t.Errorf("command to a file: %+v, want EOPNOTSUPP", c)
	}
	must(t, r.BlockDiscard(int(f.Fd()), 0, 4096, false, 2))
	if c := r.one(t); c.Res != -int32(unix.EOPNOTSUPP) {
		t.Errorf("block discard of a file: %+v, want EOPNOTSUPP", c)
	}
	must(t, r.Cancel(99, 3))
	if c := r.one(t); c.Res != -int32(unix.ENOENT) {
		t.Errorf("cancel of nothing: %+v, want ENOENT", c)
	}
}

func TestPayload(t *testing.T) {
	for _, c := range []struct {
		big  bool
		max  int
		name string
	}{{false, 16, "64-byte entries"}, {true, 80, "128-byte entries"}} {
		r := newTestRing(t, Options{Entries: 1, BigSQE: c.big})
		if err := r.Command(0, 1, 0, make([]byte, c.max+1), 0); err == nil {
			t.Errorf("%s take a payload of %d bytes", c.name, c.max+1)
		}
		payload := bytes.Repeat([]byte{0xa5}, c.max)
		must(t, r.Command(-1, 0x11223344, 0x66, payload, 0x55))
		if !bytes.Equal(r.sq.sqes[cmdOffset:cmdOffset+c.max], payload) {
			t.Errorf("%s: the payload is not at %d", c.name, cmdOffset)
		}
		if got := r.sq.sqes[8:16]; !bytes.Equal(got, []byte{0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0}) {
			t.Errorf("%s: command and padding are % x", c.name, got)
		}
	}
}

// TestInterrupted waits for reads of a pipe under a storm of the signal with which the runtime
// interrupts its threads. Each read must come back once.
func TestInterrupted(t *testing.T) {
	for name, raw := range map[string]bool{"known to the runtime": false, "raw": true} {
		t.Run(name, func(t *testing.T) {
			r := newTestRing(t, Options{Entries: 8})
			pr, pw, err := os.Pipe()
			must(t, err)
			defer pr.Close()
			defer pw.Close()
			b := mapTestBuffer(t, 4096)
			stop := storm(t)
			defer stop()
			for i := range 60 {
				must(t, r.Read(int(pr.Fd()), 0, Memory(b[:1]), 0, uint64(i)))
				go func() {
					if _, err := pw.Write([]byte{byte(i)}); err != nil {
						t.Error(err)
					}
				}()
				if err := r.Enter(1, raw); err != nil {
					t.Fatalf("enter: %v", err)
				}
				all := reap(r)
				if len(all) != 1 || all[0] != (Completion{uint64(i), 1}) || b[0] != byte(i) {
					t.Fatalf("read %d: %+v, byte %d", i, all, b[0])
				}
			}
		})
	}
}

// storm sends SIGURG to the calling thread until the function that it returns is called.
func storm(t *testing.T) (stop func()) {
	pid, tid := os.Getpid(), unix.Gettid()
	var over atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !over.Load() {
			if err := unix.Tgkill(pid, tid, unix.SIGURG); err != nil {
				t.Errorf("signal: %v", err)
				return
			}
			runtime.Gosched()
		}
	}()
	return func() {
		over.Store(true)
		<-ended
	}
}

func TestCloseTwice(t *testing.T) {
	lockThread(t)
	r, err := NewRing(Options{Entries: 4})
	must(t, err)
	must(t, r.Close())
	must(t, r.Close())
}
