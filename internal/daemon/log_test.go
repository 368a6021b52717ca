package daemon

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
)

// stuck is a standard error that nobody reads.
type stuck struct{ release chan struct{} }

func (s stuck) Write(p []byte) (int, error) { <-s.release; return len(p), nil }

func TestLogNeverBlocks(t *testing.T) {
	s := stuck{make(chan struct{})}
	w := newAsyncWriter(s)
	for range logQueue * 2 {
		if _, err := w.Write([]byte("line\n")); err != nil {
			t.Fatal(err)
		}
	}
	// One line may be in the hands of the writer.
	if n := w.dropped.Load(); n < logQueue-1 || n > logQueue {
		t.Errorf("%d lines dropped, want about %d", n, logQueue)
	}
	w.close(time.Millisecond)
	close(s.release)
}

// late is a standard error that is read from some time on.
type late struct {
	bytes.Buffer
	from chan struct{}
}

func (l *late) Write(p []byte) (int, error) { <-l.from; return l.Buffer.Write(p) }

// TestLogSaysWhatIsDropped: how many lines were dropped is said once, behind those that were kept.
func TestLogSaysWhatIsDropped(t *testing.T) {
	out := &late{from: make(chan struct{})}
	w := newAsyncWriter(out)
	for range logQueue * 2 {
		_, _ = w.Write([]byte("line\n"))
	}
	close(out.from)
	w.close(time.Minute)
	kept, said, _ := strings.Cut(out.String(), "{")
	if n := strings.Count(kept, "line\n"); int64(n)+w.dropped.Load() != 2*logQueue {
		t.Errorf("%d lines were kept, %d dropped, of %d", n, w.dropped.Load(), 2*logQueue)
	}
	if want := fmt.Sprintf(`"lines":%d`, w.dropped.Load()); !strings.Contains(said, want) || strings.Count(said, "\n") != 1 {
		t.Errorf("it says %q, not once %s", said, want)
	}
}

func TestLogArrivesInOrder(t *testing.T) {
	var b bytes.Buffer
	w := newAsyncWriter(&b)
	line := []byte("1\n")
	_, _ = w.Write(line)
	line[0] = '2' // the caller uses its buffer again
	_, _ = w.Write(line)
	w.close(time.Minute)
	if b.String() != "1\n2\n" {
		t.Errorf("log is %q", b.String())
	}
}

func TestLogFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := &boundedFile{file: f, max: 100}
	for range 50 {
		if _, err := b.Write([]byte("123456789\n")); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || len(got) > 100 || !strings.HasPrefix(string(got), "123456789\n") {
		t.Errorf("log of %d bytes: %q, %v", len(got), got, err)
	}
}

// TestLogEndsWithTheClone: the daemon of a unit has no log of its own, and removes one that was
// there when the clone ends. That of a daemon that has died stays until this one is up.
func TestLogEndsWithTheClone(t *testing.T) {
	for _, dead := range []bool{false, true} {
		dir, n := control.Dir(t.TempDir()), namedLog{}
		if err := os.WriteFile(dir.LogPath("c"), []byte("last words"), 0o600); err != nil {
			t.Fatal(err)
		}
		if dead {
			if err := dir.Store(&definition.Definition{Name: "c"}); err != nil {
				t.Fatal(err)
			}
		}
		n.own(dir, "c", zerolog.Nop())
		for _, up := range []bool{false, true} {
			n.found = n.found && !up
			if err := n.forget(dir, "c"); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(dir.LogPath("c")); (err == nil) != (dead && !up) {
				t.Errorf("dead %t, up %t: %v", dead, up, err)
			}
		}
	}
}
