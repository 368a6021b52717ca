package uring

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSignalsDuringWork lets signals rain on the loop's thread, as the runtime sends them to a
// thread that has run for 10 ms or holds up a garbage collection. The kernel then cannot make the
// thread that an fdatasync runs on, and gives the fdatasync up with ECANCELED after three attempts
// (io_should_retry_thread, io-wq.c, 6.10 to 6.18). Nobody has asked for that, so that it must not
// be seen.
func TestSignalsDuringWork(t *testing.T) {
	const rounds, each = 50, 20
	f := openTestFile(t, t.TempDir(), 0)
	for range rounds {
		flushUnderSignals(t, f, each)
	}
}

// flushUnderSignals makes a loop, whose thread has no workers yet, and flushes f.
func flushUnderSignals(t *testing.T, f *os.File, times int) {
	ends := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends, and with it its workers
		ends <- flushAll(f, times)
	}()
	if err := <-ends; err != nil {
		t.Fatal(err)
	}
}

func flushAll(f *os.File, times int) (err error) {
	r := &recorder{}
	l, err := NewLoop(r, LoopOptions{Tokens: times})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	stop := rainSignals(unix.Gettid())
	defer stop()
	file, err := NewFile(f)
	if err != nil {
		return err
	}
	port := l.Open(file, 0)
	for token := range times {
		port.Flush(uint32(token))
	}
	for len(r.ends) < times && l.err == nil {
		l.round()
	}
	for _, e := range r.ends {
		err = errors.Join(err, e.err)
	}
	return errors.Join(err, l.err)
}

// rainSignals sends SIGURG, which the runtime uses and programs ignore, to the thread until stop is
// called.
func rainSignals(tid int) (stop func()) {
	end := make(chan struct{})
	var wait sync.WaitGroup
	wait.Add(1)
	go func() {
		defer wait.Done()
		for {
			select {
			case <-end:
				return
			default:
				_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG) // its queue may be full
			}
		}
	}()
	return func() { close(end); wait.Wait() }
}
