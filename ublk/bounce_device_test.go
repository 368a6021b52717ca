//go:build device

package ublk

import (
	"sync"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestRegistrationFails: the driver fails to register the pages of most requests, several at once.
// All of them are answered, and none of them waits for another request to come. Where the driver
// registers nothing it shows nothing.
func TestRegistrationFails(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	for name, set := range map[string]func(*Options){
		"of most tags": func(o *Options) { o.table = 1 },
		"of all":       func(o *Options) { o.bounce = true },
	} {
		t.Run(name, func(t *testing.T) {
			const block = 4096
			o := testOptions(1)
			set(&o)
			m := newMemory(o.Params.Size)
			m.mu.hold = true
			d := startDevice(t, o, m.target)
			f, b := openBlock(t, d), pattern(alignedBuffer(t, o.Depth*block), 5)
			var wg sync.WaitGroup
			for i := range o.Depth {
				wg.Go(func() {
					if _, err := f.WriteAt(b[i*block:(i+1)*block], int64(2*i*block)); err != nil { // no two are neighbours
						t.Error(err)
					}
				})
			}
			waitFor(t, "all requests to be in flight", func() bool { return inFlight(t, d.Info().ID) == o.Depth })
			m.release()
			done := make(chan struct{})
			go func() { wg.Wait(); close(done) }()
			waitFor(t, "all requests to be answered", func() bool {
				select {
				case <-done:
					return true
				default:
					return false
				}
			})
			for i := range o.Depth {
				if got := m.disk[2*i*block : (2*i+1)*block]; string(got) != string(b[i*block:(i+1)*block]) {
					t.Errorf("write %d of the disk is not what was written", i)
				}
			}
		})
	}
}
