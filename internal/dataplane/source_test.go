package dataplane

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
)

// openTestSource makes a file whose bytes are all fill, and opens it as a source.
func openTestSource(t *testing.T, fill byte) *OpenSource {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	b := make([]byte, 4096)
	for i := range b {
		b[i] = fill
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := blockdev.Open(blockdev.Source, path, blockdev.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewOpenSource(d, nil)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestSourceReplaced: who has taken a description can use it until he is done, whatever replaces it
// meanwhile; and then it is closed.
func TestSourceReplaced(t *testing.T) {
	var s Source
	first := openTestSource(t, 1)
	s.Replace(first)
	o := s.Take()
	s.Replace(openTestSource(t, 2))
	if s.Device() == first.Device {
		t.Error("it was not replaced")
	}
	if _, err := o.Device.File().Stat(); err != nil {
		t.Errorf("a description in use was closed: %v", err)
	}
	o.Done()
	s.Close()
	if _, err := first.Device.File().Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a description that nobody uses: %v", err)
	}
	if s.Device() != nil || s.Away() == nil {
		t.Error("there is a source after close")
	}
	if _, err := s.NextData(0); err == nil {
		t.Error("a source that is away has data")
	}
}

// TestSourceReplacedUnderReaders: no reader ever finds its description closed. Run under -race,
// too.
func TestSourceReplacedUnderReaders(t *testing.T) {
	var s Source
	s.Replace(openTestSource(t, 0))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			b := make([]byte, 512)
			for {
				select {
				case <-stop:
					return
				default:
				}
				o := s.Take()
				if o.Device != nil {
					if _, err := o.Device.File().ReadAt(b, 0); err != nil {
						t.Error(err)
					}
				}
				o.Done()
			}
		})
	}
	for i := range 200 {
		if i%5 == 4 {
			none, err := NewOpenSource(nil, ErrNoSource)
			if err != nil {
				t.Fatal(err)
			}
			s.Replace(none)
			continue
		}
		s.Replace(openTestSource(t, byte(i)))
	}
	close(stop)
	readers.Wait()
	s.Close()
}
