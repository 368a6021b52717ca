//go:build device

package devicetest

import (
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
)

// patientUser makes random requests, and makes one that has failed again until it succeeds: so the
// model always knows what a sector holds. A request may only fail while its surroundings are not
// sound.
type patientUser struct {
	m       *harness.Machine
	model   *harness.Model
	quit    chan struct{}
	group   sync.WaitGroup
	retries atomic.Int64

	mu      sync.Mutex
	isSound bool
	since   time.Time // when it became so
}

// retryPause is between two tries.
const retryPause = 200 * time.Millisecond

func newPatientUser(m *harness.Machine, size int64) *patientUser {
	return &patientUser{m: m, model: harness.NewModel(size, 4*harness.KiB), isSound: true, since: time.Now()}
}

func (u *patientUser) setSound(is bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.isSound, u.since = is, time.Now()
}

// soundSince says whether the surroundings were sound all the time since.
func (u *patientUser) soundSince(then time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.isSound && u.since.Before(then)
}

func (u *patientUser) start(rng *rand.Rand, path string) {
	u.quit = make(chan struct{})
	for range 3 {
		v := u.m.Open(path, os.O_RDWR)
		buf, free := u.m.Scratch(harness.IOSize)
		own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		u.group.Go(func() {
			defer v.F.Close()
			defer free()
			for u.request(own, v, buf) {
				select {
				case <-u.quit:
					return
				case <-time.After(soakRest):
				}
			}
		})
	}
}

// stop waits for the requests at work, which must succeed by themselves.
func (u *patientUser) stop() {
	close(u.quit)
	u.group.Wait()
	if u.m.Failed() {
		u.m.FailNow()
	}
}

// request makes one request until it succeeds; false: it has failed for good.
func (u *patientUser) request(rng *rand.Rand, v *harness.Volume, buf []byte) bool {
	w := u.model
	off, length := w.Place(rng, 512)
	kind := rng.IntN(10)
	w.Enter(off, length)
	defer w.Leave(off, length)
	ver, b := w.NewVersion(), buf[:length]
	for {
		begin := time.Now()
		var err error
		switch {
		case kind < 4:
			if err = v.Read(b, off); err == nil {
				if err = w.Compare(b, off); err != nil {
					u.m.Errorf("a wrong read: %v", err)
					return false
				}
			}
		case kind < 8:
			harness.Fill(b, off, ver)
			if err = v.Write(b, off); err == nil {
				w.Set(off, off+length, ver)
			}
		case kind == 8:
			if err = v.Zero(off, length); err == nil {
				w.Set(off, off+length, harness.Zeros)
			}
		default:
			err = v.Flush()
		}
		if err == nil {
			w.Took(time.Since(begin))
			return true
		}
		if !errors.Is(err, unix.EIO) || u.soundSince(begin) {
			u.m.Errorf("a request of kind %d at %d, %d bytes: %v", kind, off, length, err)
			return false
		}
		u.retries.Add(1)
		time.Sleep(retryPause)
	}
}
