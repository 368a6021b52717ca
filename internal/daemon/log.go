package daemon

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/term"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/sys"
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
// queue full are dropped, and counted in a line of their own when there is room.
//
// zerolog has a writer for this, zerolog/diode. It does not fit (v1.35.1, read and tried):
//
//   - Goroutines that log at once on a full queue print a complaint to standard error themselves,
//     through package log (ManyToOne.Set). They wait there if nobody reads it.
//   - A line that arrives while the writing goroutine goes to sleep is not written before the next
//     line: 25 lines of a million (Waiter.Set wakes the goroutine without the lock). Without a
//     waiter the goroutine polls for as long as the daemon lives.
//   - An overflow drops the lines that are queued, which say how the trouble began.
//   - Close waits for a stuck standard error without a limit. The goroutines are not guarded.
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
	late, told := newLog(os.Stderr, out), int64(0)
	for line := range w.lines {
		if line != nil {
			_, _ = out.Write(line) // there is nowhere to report it to
		}
		if n := w.dropped.Load(); n > told && len(w.lines) == 0 {
			late.Warn().Int64("lines", n-told).Msg("lines of this log were dropped: nobody took them for a while")
			told = n
		}
		if line == nil {
			return
		}
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

// The log is the holder's of the name, who alone removes it: the loser of two starts has written to
// the winner's at most. Nobody empties it at a start, because what a dead daemon has said last is
// what one wants to read.

// namedLog is the log of a daemon as a file of its name. One that a unit has started has none, but
// finds what a former daemon of another start has left, or a successor that only looked.
type namedLog struct {
	found bool // a dead daemon may have left it, and this one is not up yet
}

// own sees to it that the log of a daemon that was started with one is the file that the name has.
// A daemon of that name that ended meanwhile may have removed the one that was opened for this.
func (n *namedLog) own(dir control.Dir, name string, log zerolog.Logger) {
	_, err := dir.Load(name)
	n.found = err == nil // of a daemon that has died
	if !isLog(os.Stderr, dir.LogPath(name)) {
		return
	}
	f, err := os.OpenFile(dir.LogPath(name), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		log.Warn().Err(err).Msg("open the log")
		return
	}
	defer f.Close()
	for fd := 1; fd <= 2; fd++ {
		if err := sys.ReplaceBy(fd, int(f.Fd())); err != nil {
			log.Warn().Err(err).Msg("open the log")
		}
	}
}

// isLog says whether a file was opened by that path, which may be another's by now, or nobody's.
func isLog(f *os.File, path string) bool {
	to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return err == nil && strings.TrimSuffix(to, " (deleted)") == path
}

// forget removes the log when the clone has ended, or a start has failed that found no dead daemon.
// The name is still locked.
func (n *namedLog) forget(dir control.Dir, name string) error {
	if n.found {
		return nil
	}
	return file.Remove(dir.LogPath(name))
}
