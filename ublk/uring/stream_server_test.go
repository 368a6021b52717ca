package uring

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/nbd"
	"golang.org/x/sys/unix"
)

// asked is a request as a server gets it.
type asked struct {
	handle uint64
	off    int64
	length int64
}

// fakeServer is the other end of a stream, in a goroutine of its own. It does what its script does.
type fakeServer struct {
	t    testing.TB
	conn *os.File
	done chan struct{} // the script has ended
}

// testSocketPair is two ends of a stream that wait, as those of a connection do that a loop is
// given.
func testSocketPair(t testing.TB) (ours, peer *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	ours, peer = os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "peer")
	t.Cleanup(func() { ours.Close(); peer.Close() })
	return ours, peer
}

// openTestStream makes a stream to a server with a script; the connection is closed when the script
// ends.
func openTestStream(t testing.TB, l *Loop, limit int, script func(*fakeServer)) *Stream {
	t.Helper()
	ours, peer := testSocketPair(t)
	s, err := l.OpenStream(newTestFile(t, ours), nbd.Wire{}, limit)
	must(t, err)
	f := &fakeServer{t: t, conn: peer, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		defer peer.Close()
		script(f)
	}()
	t.Cleanup(func() { ours.Close(); peer.Close() })
	return s
}

// next waits for a request; false: the client has closed.
func (f *fakeServer) next() (asked, bool) {
	b := make([]byte, nbd.RequestSize)
	if _, err := io.ReadFull(f.conn, b); err != nil {
		return asked{}, false
	}
	if binary.BigEndian.Uint64(b) != 0x25609513<<32 {
		f.t.Errorf("a request begins with % x", b[:8])
	}
	return asked{binary.BigEndian.Uint64(b[8:]), int64(binary.BigEndian.Uint64(b[16:])), int64(binary.BigEndian.Uint32(b[24:]))}, true
}

// take waits for n requests.
func (f *fakeServer) take(n int) []asked {
	var all []asked
	for range n {
		a, ok := f.next()
		if !ok {
			f.t.Errorf("the client has closed after %d requests of %d", len(all), n)
			return all
		}
		all = append(all, a)
	}
	return all
}

// hold waits until the client has closed.
func (f *fakeServer) hold() { _, _ = io.Copy(io.Discard, f.conn) }

// send sends b, if the client is there yet.
func (f *fakeServer) send(b []byte) bool {
	_, err := f.conn.Write(b)
	return err == nil
}

// sendInPieces sends b a few bytes at a time, with a pause now and then.
func (f *fakeServer) sendInPieces(random *rand.Rand, b []byte) bool {
	for len(b) > 0 {
		n := min(1+random.IntN(1+len(b)/3), len(b))
		if !f.send(b[:n]) {
			return false
		}
		if b = b[n:]; random.IntN(16) == 0 {
			time.Sleep(time.Duration(random.IntN(300)) * time.Microsecond)
		}
	}
	return true
}

// head is a reply's head.
func head(handle uint64, failure unix.Errno) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x67446698)
	b = binary.BigEndian.AppendUint32(b, uint32(failure))
	return binary.BigEndian.AppendUint64(b, handle)
}

// reply is a whole reply, with the bytes that are right.
func (a asked) reply() []byte { return append(head(a.handle, 0), content(a.off, a.length)...) }

// content is what the fake servers have at off.
func content(off, length int64) []byte {
	b := make([]byte, length)
	for i := range b {
		at := off + int64(i)
		b[i] = byte(at*7 ^ at>>8 ^ at>>16)
	}
	return b
}

// answersAll replies to each request at once, whole.
func answersAll(f *fakeServer) {
	for {
		a, ok := f.next()
		if !ok || !f.send(a.reply()) {
			return
		}
	}
}

// wantLost expects that err says that the stream is lost, for a reason.
func wantLost(t *testing.T, err error, words string) {
	t.Helper()
	if !errors.Is(err, ErrLost) || !contains(err.Error(), words) {
		t.Errorf("ended with %v; want %v: %s", err, ErrLost, words)
	}
}
