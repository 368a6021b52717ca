package uring

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// ended is one call of Complete.
type ended struct {
	token uint32
	err   error
}

// recorder is a Handler that keeps what it is told.
type recorder struct {
	ends   []ended
	drains int
	drain  func() // if set, called by Drain
}

func (r *recorder) EndIO(token uint32, err error) { r.ends = append(r.ends, ended{token, err}) }

func (r *recorder) Drain() {
	r.drains++
	if r.drain != nil {
		r.drain()
	}
}

func newTestLoop(t testing.TB, o LoopOptions) (*Loop, *recorder) {
	t.Helper()
	lockThread(t)
	r := &recorder{}
	l, err := NewLoop(r, o)
	if err != nil {
		t.Fatalf("make loop: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close loop: %v", err)
		}
	})
	return l, r
}

// until runs rounds until n operations have ended, and returns how.
func (r *recorder) until(t testing.TB, l *Loop, n int) []ended {
	t.Helper()
	for len(r.ends) < n {
		l.round()
		if l.err != nil {
			t.Fatalf("loop: %v", l.err)
		}
	}
	if len(r.ends) != n {
		t.Fatalf("%d operations ended, want %d: %v", len(r.ends), n, r.ends)
	}
	ends := r.ends
	r.ends = nil
	return ends
}

// one runs until the one operation outstanding has ended.
func (r *recorder) one(t testing.TB, l *Loop) error {
	t.Helper()
	return r.until(t, l, 1)[0].err
}

func newTestFile(t testing.TB, f *os.File) *File {
	t.Helper()
	file, err := NewFile(f)
	must(t, err)
	return file
}

func fill(b []byte, with byte) []byte {
	for i := range b {
		b[i] = with
	}
	return b
}

func testPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// TestSubmit: what was prepared reaches the kernel without a round, and its end waits for one.
func TestSubmit(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1})
	f, err := os.Create(t.TempDir() + "/file")
	must(t, err)
	defer f.Close()
	b := fill(mapTestBuffer(t, 4096), 'x')
	before := l.Idle()
	l.Open(newTestFile(t, f), 0).Write(0, 0, Memory(b[:5]), false)
	l.Submit()
	if !before || l.Idle() {
		t.Errorf("idle before a write: %v, with one outstanding: %v", before, l.Idle())
	}
	if got := l.ring.Pending(); got != 0 {
		t.Errorf("%d entries were not submitted", got)
	}
	if len(r.ends) != 0 || r.drains != 0 {
		t.Errorf("the handler was called: %+v", r)
	}
	must(t, r.one(t, l))
	if !l.Idle() {
		t.Error("not idle after the write")
	}
	if got, err := os.ReadFile(f.Name()); err != nil || string(got) != "xxxxx" {
		t.Errorf("the file holds %q, %v", got, err)
	}
}

// TestInFlightLimit starts more reads of an empty pipe than the limit and counts what the kernel
// has; then they complete, in order.
func TestInFlightLimit(t *testing.T) {
	const tokens, limit = 10, 3
	l, r := newTestLoop(t, LoopOptions{Tokens: tokens})
	pr, pw := testPipe(t)
	b := mapTestBuffer(t, 4096)
	f := l.Open(newTestFile(t, pr), limit)
	most := 0
	for token := range uint32(tokens) {
		f.Read(token, 0, Memory(b[token:token+1]))
		most = max(most, int(l.ring.Pending()))
	}
	if f.inFlight != limit || f.waiting.n != tokens-limit {
		t.Errorf("%d in flight and %d waiting, want %d and %d", f.inFlight, f.waiting.n, limit, tokens-limit)
	}
	if most > limit+1 {
		t.Errorf("%d entries prepared, want at most the %d reads and the wake-up", most, limit)
	}
	if _, err := pw.Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	for i, e := range r.until(t, l, tokens) {
		if e.err != nil || (i >= limit && e.token != uint32(i)) {
			t.Errorf("end %d is token %d with %v", i, e.token, e.err)
		}
	}
	if f.inFlight != 0 || !f.waiting.empty() {
		t.Errorf("%d in flight and %d waiting at the end", f.inFlight, f.waiting.n)
	}
}

func TestFIFO(t *testing.T) {
	ops := make([]operation, 5)
	var q fifo
	next, want := uint32(0), uint32(0)
	for range 20 { // never more than 5 in it, wrapping over all places
		for q.n < 4 {
			q.push(ops, next%5)
			next++
		}
		for q.n > 1 {
			if got := q.pop(ops); got != want%5 {
				t.Fatalf("popped %d, want %d", got, want%5)
			}
			want++
		}
	}
}

// TestWake posts from many goroutines while the loop sleeps and works. Nothing posted may stay
// behind.
func TestWake(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{})
	const posters, posts = 8, 500
	var mu sync.Mutex
	posted, taken := 0, 0
	r.drain = func() {
		mu.Lock()
		defer mu.Unlock()
		taken += posted
		posted = 0
		if taken == posters*posts {
			l.Stop()
		}
	}
	for range posters {
		go func() {
			for range posts {
				mu.Lock()
				posted++
				mu.Unlock()
				l.Wake()
				runtime.Gosched()
			}
		}()
	}
	if err := l.Run(); err != nil {
		t.Fatal(err)
	}
	if taken != posters*posts {
		t.Errorf("%d of %d posts were seen", taken, posters*posts)
	}
}

func TestWakesAreOne(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{})
	for range 1000 {
		l.Wake()
	}
	l.round()
	if r.drains != 1 || !bytes.Equal(l.waker.counter[:8], one) {
		t.Errorf("%d rounds, counter % x; want one round and a count of one", r.drains, l.waker.counter[:8])
	}
}

func TestWakeAfterClose(t *testing.T) {
	lockThread(t)
	l, err := NewLoop(&recorder{}, LoopOptions{})
	must(t, err)
	must(t, l.Close())
	l.Wake()
	l.Wake()
}

// TestStopWaits: Run returns when the last operation has ended, those in line included.
func TestStopWaits(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 2})
	pr, pw := testPipe(t)
	f, b := l.Open(newTestFile(t, pr), 1), mapTestBuffer(t, 4096)
	f.Read(0, 0, Memory(b[:1]))
	f.Read(1, 0, Memory(b[1:2]))
	l.Stop()
	var over atomic.Bool
	go func() {
		l.Wake()
		if over.Load() {
			t.Error("ended with reads outstanding")
		}
		if _, err := pw.WriteString("xy"); err != nil {
			t.Error(err)
		}
	}()
	err := l.Run()
	over.Store(true)
	if err != nil || len(r.ends) != 2 || string(b[:2]) != "xy" {
		t.Errorf("run: %v, ended %v, read %q", err, r.ends, b[:2])
	}
}

// TestStorm runs operations under a storm of signals: each ends once and whole.
func TestStorm(t *testing.T) {
	const tokens = 16
	l, r := newTestLoop(t, LoopOptions{Tokens: tokens})
	f := l.Open(newTestFile(t, openTestFile(t, t.TempDir(), unix.O_DIRECT)), 4)
	b := mapTestBuffer(t, tokens*4096)
	stop := storm(t)
	defer stop()
	for pass := range byte(15) {
		for token := range uint32(tokens) {
			f.Write(token, int64(token)*4096, Memory(fill(b[token*4096:][:4096], pass^byte(token))), false)
		}
		r.until(t, l, tokens)
		clear(b)
		for token := range uint32(tokens) {
			f.Read(token, int64(token)*4096, Memory(b[token*4096:][:4096]))
		}
		seen := [tokens]int{}
		for _, e := range r.until(t, l, tokens) {
			if e.err != nil {
				t.Fatalf("token %d: %v", e.token, e.err)
			}
			seen[e.token]++
		}
		for token := range seen {
			if seen[token] != 1 || b[token*4096] != pass^byte(token) || b[token*4096+4095] != pass^byte(token) {
				t.Fatalf("pass %d, token %d: ended %d times, byte %d", pass, token, seen[token], b[token*4096])
			}
		}
	}
}

func TestRingFailureEndsTheLoop(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1})
	r.drain = func() { must(t, l.ring.Nop(0)) }
	l.Wake()
	if err := l.Run(); err == nil {
		t.Error("unknown user data did not end the loop")
	}
	lost, _ := newTestLoop(t, LoopOptions{})
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	must(t, unix.Dup3(int(null.Fd()), lost.ring.fd, unix.O_CLOEXEC))
	if err := lost.Run(); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("run without a ring: %v, want EOPNOTSUPP", err)
	}
}

// commander is a CommandHandler that counts.
type commander struct {
	recorder
	results []int32
}

func (c *commander) Command(id uint32, res int32) { c.results = append(c.results, res) }

func TestCommands(t *testing.T) {
	lockThread(t)
	c := &commander{}
	l, err := NewLoop(c, LoopOptions{Commands: 2})
	must(t, err)
	defer l.Close()
	f := openTestFile(t, t.TempDir(), 0)
	l.Command(0, int(f.Fd()), 1, 0, make([]byte, 16))
	l.Command(1, int(f.Fd()), 1, 0, make([]byte, 16))
	l.CancelCommand(0)
	for len(c.results) < 2 {
		l.round()
	}
	for _, res := range c.results {
		if res != -int32(unix.EOPNOTSUPP) {
			t.Errorf("command to a file ended with %d", res)
		}
	}
}

// loopRounds makes the operations of a round, for the benchmark and the test of allocation.
func loopRounds(tb testing.TB) (round func()) {
	const tokens = 8
	l, r := newTestLoop(tb, LoopOptions{Tokens: tokens})
	f := openTestFile(tb, tb.TempDir(), 0)
	must(tb, f.Truncate(tokens*4096))
	file, b := l.Open(newTestFile(tb, f), 4), mapTestBuffer(tb, tokens*4096)
	r.ends = make([]ended, 0, 2*tokens)
	return func() {
		for token := range uint32(tokens) {
			piece := b[token*4096:][:4096]
			if token%2 == 0 {
				file.Read(token, int64(token)*4096, Memory(piece))
			} else {
				file.Write(token, int64(token)*4096, Memory(piece), false)
			}
		}
		l.Wake()
		for len(r.ends) < tokens {
			l.round()
		}
		for _, e := range r.ends {
			if e.err != nil {
				tb.Fatalf("token %d: %v", e.token, e.err)
			}
		}
		r.ends = r.ends[:0]
	}
}

func TestNoAllocation(t *testing.T) {
	if n := testing.AllocsPerRun(200, loopRounds(t)); n != 0 {
		t.Errorf("%v allocations for 8 operations", n)
	}
}

func BenchmarkLoop(b *testing.B) {
	round := loopRounds(b)
	b.ReportAllocs()
	for b.Loop() {
		round()
	}
}
