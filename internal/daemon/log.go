package daemon

import (
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/term"

	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// logQueue is how many lines wait for a slow standard error before lines are
// dropped.
const logQueue = 1024

// logBytes is where the daemon's log file begins anew, in bytes.
const logBytes = 1 << 20

// newLog writes to f: in words on a terminal, as JSON lines otherwise.
func newLog(f *os.File, w io.Writer) zerolog.Logger {
	if term.IsTerminal(int(f.Fd())) {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly, NoColor: os.Getenv("NO_COLOR") != ""}
	}
	return zerolog.New(w).With().Timestamp().Logger()
}

// asyncWriter keeps whoever logs from waiting: a process that serves a device
// must not stop because nobody reads its standard error. Lines that find the
// queue full are dropped and counted.
type asyncWriter struct {
	lines   chan []byte
	flushed chan struct{}
	dropped atomic.Int64
}

// newAsyncWriter starts the goroutine that writes to out.
func newAsyncWriter(out io.Writer) *asyncWriter {
	w := &asyncWriter{lines: make(chan []byte, logQueue), flushed: make(chan struct{})}
	guard.Go("log", func() { w.run(out) })
	return w
}

// run writes until close, whose mark is a nil line.
func (w *asyncWriter) run(out io.Writer) {
	defer close(w.flushed)
	for line := range w.lines {
		if line == nil {
			return
		}
		_, _ = out.Write(line) // there is nowhere to report it to
	}
}

// Write takes one line and never blocks.
func (w *asyncWriter) Write(p []byte) (int, error) {
	select {
	case w.lines <- append(make([]byte, 0, len(p)), p...):
	default:
		w.dropped.Add(1)
	}
	return len(p), nil
}

// close waits at most limit for what is queued. What is written afterwards is
// lost.
func (w *asyncWriter) close(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case w.lines <- nil:
	case <-timer.C:
		return
	}
	select {
	case <-w.flushed:
	case <-timer.C:
	}
}

// boundedFile is a log file that begins anew when it is full. It is opened for
// appending, so that the runtime's own last words find its end too.
type boundedFile struct {
	file *os.File
	max  int64
}

func (b *boundedFile) Write(p []byte) (int, error) {
	if info, err := b.file.Stat(); err == nil && info.Size()+int64(len(p)) > b.max {
		if err := b.file.Truncate(0); err != nil {
			return 0, err
		}
	}
	return b.file.Write(p)
}
