package fingerprint

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"
)

const mib = 1 << 20

// badDisk is what a sampler reads: bytes that tell their place, and stretches that cannot be read.
type badDisk struct {
	bad     [][2]int64
	err     error
	latency time.Duration
	xor     byte // another content

	mu    sync.Mutex
	reads int
	most  int // at once
	now   int
}

func (b *badDisk) ReadAt(p []byte, off int64) error {
	b.mu.Lock()
	b.reads++
	b.now++
	b.most = max(b.most, b.now)
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.now--
	}()
	time.Sleep(b.latency)
	for _, s := range b.bad {
		if off < s[1] && s[0] < off+int64(len(p)) {
			return fmt.Errorf("read: %w", b.err)
		}
	}
	for i := range p {
		at := off + int64(i)
		p[i] = byte(at>>12) ^ byte(at>>20) ^ byte(at) ^ b.xor
	}
	return nil
}

func (b *badDisk) take(size int64, known *[NrPieces]uint32) (Print, error) {
	s := sampler{read: b.ReadAt, end: size, buf: make([]byte, Bytes), known: known}
	return s.take()
}

func zeros(f *Print) (n int) {
	for _, p := range f.Pieces {
		if p == 0 {
			n++
		}
	}
	return n
}

// TestFingerprintOfBadDisk: sectors that cannot be read are left out and recorded, and are not
// asked for again.
func TestFingerprintOfBadDisk(t *testing.T) {
	const size = 64 * mib
	sound, err := new(badDisk).take(size, nil)
	if err != nil || sound.Partial || zeros(&sound) != 0 {
		t.Fatalf("a sound disk: %v, %d pieces", err, NrPieces-zeros(&sound))
	}
	for name, c := range map[string]struct {
		bad     [][2]int64
		pieces  int
		partial bool
	}{
		"first sector":  {[][2]int64{{0, 512}}, 1, true},
		"first MiB":     {[][2]int64{{0, mib}}, 9, true},
		"last sector":   {[][2]int64{{size - 512, size}}, 1, true},
		"last MiB":      {[][2]int64{{size - mib, size}}, 9, true},
		"in the middle": {[][2]int64{{20 * mib, 21 * mib}}, 1, false},
		"all three":     {[][2]int64{{4096, 8192}, {20 * mib, 21 * mib}, {size - 4096, size}}, 3, true},
	} {
		disk := &badDisk{bad: c.bad, err: syscall.EIO}
		got, err := disk.take(size, nil)
		if err != nil || zeros(&got) != c.pieces || got.Partial != c.partial {
			t.Errorf("%s: %d pieces are bad, partial %v, %v", name, zeros(&got), got.Partial, err)
		}
		before := disk.reads
		again, err := disk.take(size, &got.Pieces)
		if err != nil || again != got || disk.reads-before != NrPieces-c.pieces {
			t.Errorf("%s: again: %v, %d reads", name, err, disk.reads-before)
		}
		healed, err := new(badDisk).take(size, &got.Pieces)
		if err != nil || healed != got {
			t.Errorf("%s: when the sectors can be read again: %v", name, err)
		}
	}
}

// TestFingerprintOfDeadDisk: a disk that gives nothing is asked for a part of the pieces only, and
// one that is gone once.
func TestFingerprintOfDeadDisk(t *testing.T) {
	for _, c := range []struct {
		err   error
		reads int
	}{{syscall.EIO, deafAfter}, {syscall.ENODATA, deafAfter}, {syscall.ENODEV, 1}, {syscall.ETIMEDOUT, 1}, {io.ErrUnexpectedEOF, 1}} {
		disk := &badDisk{bad: [][2]int64{{0, 64 * mib}}, err: c.err}
		if _, err := disk.take(64*mib, nil); !errors.Is(err, c.err) || disk.reads != c.reads {
			t.Errorf("%v: %v after %d reads", c.err, err, disk.reads)
		}
	}
}

// TestFingerprintOfSlowDisk: a sample takes the time of few reads, and not of all.
func TestFingerprintOfSlowDisk(t *testing.T) {
	disk := &badDisk{latency: 50 * time.Millisecond}
	if _, err := disk.take(64*mib, nil); err != nil || disk.most < 2 || disk.most > readsAtOnce {
		t.Errorf("%v, %d reads at once", err, disk.most)
	}
}

// TestFingerprintSizes: a source of any size has pieces, and each changes with the content.
func TestFingerprintSizes(t *testing.T) {
	for _, size := range []int64{512, 4096, 4608, 65536, mib - 512, mib, mib + 512, 2 * mib, 3*mib + 512, 1 << 40} {
		a, errA := new(badDisk).take(size, nil)
		b, errB := (&badDisk{xor: 0x40}).take(size, nil)
		if errA != nil || errB != nil || a.Sample == b.Sample {
			t.Errorf("%d bytes: %v, %v", size, errA, errB)
		}
		for i := range a.Pieces {
			if a.Pieces[i] == b.Pieces[i] && a.Pieces[i] != 0 {
				t.Errorf("%d bytes: piece %d does not change", size, i)
			}
		}
	}
}
