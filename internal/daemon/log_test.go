package daemon

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
