package rate

import (
	"errors"
	"sync"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Bounds of a measurement of the source: it is read one copy after the other, as many at a time as
// hydration does.
const (
	readingTime  = 2 * time.Second // in which reads begin
	readingLimit = 4 * time.Second // for all of them to end
)

var errNoAnswer = errors.New("it has not answered in time")

// reading is what the readers of one measurement share.
type reading struct {
	device *blockdev.Device
	mu     sync.Mutex
	next   int64 // offset of the next read
	end    int64
	until  time.Time // no read begins later
	bytes  int64     // read
	last   time.Time // end of the last read
	err    error
}

// Read reads [from, end) of a device for a moment: bytes a second, 0 if nothing came. A device that
// does not answer is not waited for: its reads end when they end.
func Read(d *blockdev.Device, from, end int64) (int64, error) {
	begin := time.Now()
	r := &reading{device: d, next: from, end: end, until: begin.Add(readingTime)}
	var readers sync.WaitGroup
	for range definition.DefaultBatches {
		readers.Go(guard.Wrap("reader", r.run))
	}
	ended := make(chan struct{})
	guard.Go("read rate", func() { readers.Wait(); close(ended) })
	select {
	case <-ended:
	case <-time.After(readingLimit):
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bytes == 0 {
		return 0, errors.Join(r.err, orNoAnswer(r.err))
	}
	took := max(r.last.Sub(begin), time.Microsecond)
	return int64(float64(r.bytes) / took.Seconds()), r.err
}

func orNoAnswer(err error) error {
	if err != nil {
		return nil
	}
	return errNoAnswer
}

// run reads until there is nothing left, or no time.
func (r *reading) run() {
	m, err := sys.Map(definition.DefaultBatchBytes, true)
	for err == nil {
		off, length := r.take()
		if length == 0 {
			break
		}
		if err = sys.ReadFullAt(int(r.device.File().Fd()), m.Bytes()[:length], off); err == nil {
			r.took(length)
		}
	}
	if err != nil {
		r.mu.Lock()
		r.err, r.until = err, time.Time{}
		r.mu.Unlock()
		return
	}
	_ = m.Close() // of a few that end with the process
}

// take gives the next piece to be read, 0 bytes when there is none. Holes of a file are left out,
// and what direct I/O cannot read at the end.
func (r *reading) take() (off, length int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !time.Now().Before(r.until) {
		return 0, 0
	}
	data, err := r.device.NextData(r.next)
	if err != nil {
		return 0, 0
	}
	align := int64(r.device.Align())
	off = max(r.next, data/align*align)
	length = min(definition.DefaultBatchBytes, (r.end-off)/align*align)
	if length <= 0 {
		return 0, 0
	}
	r.next = off + length
	return off, length
}

func (r *reading) took(length int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes += length
	r.last = time.Now()
}
