package metadata

import (
	"testing"
	"time"
)

// stuckDevice keeps whoever writes to it until it is let go.
type stuckDevice struct {
	Device
	writing, release chan struct{}
}

func (d *stuckDevice) WriteAt(b []byte, off int64) error {
	select {
	case d.writing <- struct{}{}:
	default:
	}
	<-d.release
	return d.Device.WriteAt(b, off)
}

// TestSuperblockBesideAWriteThatHangs: whoever only looks at the superblock does not wait for the
// device.
func TestSuperblockBesideAWriteThatHangs(t *testing.T) {
	_, s := create(t)
	stuck := &stuckDevice{Device: s.dev, writing: make(chan struct{}, 1), release: make(chan struct{})}
	s.dev = stuck
	updated := make(chan error)
	go func() {
		updated <- s.Update(func(sb *Superblock) error { sb.Settings.Rate = 7; return nil })
	}()
	<-stuck.writing
	looked := make(chan Superblock)
	go func() { looked <- s.Superblock() }()
	select {
	case sb := <-looked:
		if sb.Settings.Rate == 7 {
			t.Error("a superblock is shown that is not written yet")
		}
	case <-time.After(10 * time.Second):
		t.Error("Superblock waits for the device")
	}
	close(stuck.release)
	if err := <-updated; err != nil {
		t.Fatal(err)
	}
	if sb := s.Superblock(); sb.Settings.Rate != 7 {
		t.Error("a superblock that is written is not shown")
	}
}
