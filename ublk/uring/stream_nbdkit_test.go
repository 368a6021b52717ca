package uring

import (
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/nbd"
	"golang.org/x/sys/unix"
)

var nbdWire = nbd.Wire{}

// openNBDKit makes a stream to a real server of 64 MiB, which scripts/setup installs.
func openNBDKit(t testing.TB, l *Loop, limit int, plugin ...string) (*Stream, nbd.Export) {
	t.Helper()
	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Fatalf("%v: scripts/setup installs it", err)
	}
	socket := filepath.Join(t.TempDir(), "socket")
	cmd := exec.Command("nbdkit", append([]string{"--foreground", "--unix", socket}, plugin...)...)
	cmd.Stderr = t.Output()
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var conn net.Conn
	for end := time.Now().Add(30 * time.Second); conn == nil; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("unix", socket)
		if err == nil {
			conn = c
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	export, err := nbd.Negotiate(conn, "", 30*time.Second)
	must(t, err)
	f, err := conn.(*net.UnixConn).File()
	must(t, err)
	must(t, conn.Close())
	t.Cleanup(func() { f.Close() })
	s, err := l.OpenStream(newTestFile(t, f), nbdWire, limit)
	must(t, err)
	return s, export
}

// TestStreamNBDKit reads all of the pattern plugin's bytes, which are their own offsets, at once.
func TestStreamNBDKit(t *testing.T) {
	const tokens, size = 16, 64 << 10
	l, r := newTestLoop(t, LoopOptions{Tokens: tokens, Streams: 1})
	s, export := openNBDKit(t, l, 8, "pattern", "size=1M")
	if export.Size != tokens*size {
		t.Fatalf("%+v", export)
	}
	b := mapTestBuffer(t, tokens*size)
	for token := range int64(tokens) {
		s.Read(uint32(token), token*size, Memory(b[token*size:][:size]))
	}
	for _, e := range r.until(t, l, tokens) {
		must(t, e.err)
	}
	for at := 0; at < len(b); at += 8 {
		got := 0
		for _, c := range b[at : at+8] {
			got = got<<8 | int(c)
		}
		if got != at {
			t.Fatalf("%x at %x", got, at)
		}
	}
	s.Read(0, export.Size, Memory(b[:512]))
	if err := r.one(t, l); err != unix.EINVAL {
		t.Errorf("a read behind the end: %v", err)
	}
	s.Read(0, 512, Memory(b[:512]))
	must(t, r.one(t, l))
}

// streamRounds reads, with depth reads of length bytes under way, n of them.
func streamRounds(t testing.TB, depth int, length int64) (read func(n int)) {
	l, r := newTestLoop(t, LoopOptions{Tokens: depth, Streams: 1})
	s, _ := openNBDKit(t, l, depth, "memory", "64M")
	b := mapTestBuffer(t, depth*int(length))
	r.ends = make([]ended, 0, 2*depth)
	at := int64(0)
	begin := func(token uint32) {
		at = (at + 977*length) % (64 << 20)
		s.Read(token, at/length*length, Memory(b[int64(token)*length:][:length]))
	}
	return func(n int) {
		for token := range min(depth, n) {
			begin(uint32(token))
		}
		for begun, ended := min(depth, n), 0; ended < n; {
			l.round()
			must(t, l.err)
			for _, e := range r.ends {
				if e.err != nil {
					t.Fatal(e.err)
				}
				if ended++; begun < n {
					begun++
					begin(e.token)
				}
			}
			r.ends = r.ends[:0]
		}
		l.settle(t)
	}
}

func TestStreamAllocatesNothing(t *testing.T) {
	read := streamRounds(t, 8, 4096)
	if n := testing.AllocsPerRun(50, func() { read(64) }); n != 0 {
		t.Errorf("%v allocations for 64 reads", n)
	}
}

// BenchmarkStream is reads of nbdkit's memory plugin. cpu-ns/op is the time of this thread.
func BenchmarkStream(b *testing.B) {
	for _, c := range []struct {
		name   string
		depth  int
		length int64
	}{{"4k-depth1", 1, 4096}, {"4k-depth32", 32, 4096}, {"64k-depth32", 32, 64 << 10}, {"1m-depth8", 8, 1 << 20}} {
		b.Run(c.name, func(b *testing.B) {
			read := streamRounds(b, c.depth, c.length)
			b.SetBytes(c.length)
			b.ReportAllocs()
			before := threadTime(b)
			b.ResetTimer()
			read(b.N)
			b.ReportMetric(float64(threadTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// threadTime is the CPU time of the thread, the kernel's included.
func threadTime(t testing.TB) time.Duration {
	var ts unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts))
	return time.Duration(ts.Nano())
}
