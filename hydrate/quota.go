package hydrate

import (
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
)

const (
	// yieldBytes is a small batch, which is where it begins among users' requests (yield.go).
	yieldBytes = 256 << 10
	// batchesASecond bounds a batch under a cap: a slow cap is not kept by a long copy every few
	// seconds.
	batchesASecond = 8
)

// quota is how much may be copied now: what the settings' rates allow, what users leave, and what
// the source takes well. It belongs to the lane's thread, and starts nothing itself.
type quota struct {
	geo clone.Geometry
	// request is the most that the source is asked for at a time, in bytes, and depth how many such
	// requests it takes (Config).
	request int64
	depth   int

	cap   pace  // no more than that is copied
	floor pace  // no less than that, where the devices can
	yield yield // how much there is beside users
}

func newQuota(cfg *Config) quota {
	q := quota{geo: cfg.Core.Geometry(), request: cfg.Request, depth: cfg.Depth}
	q.yield.forget()
	return q
}

// batch is how many regions the next batch may copy, 0 = none now, and for how long that is
// certain. room is how many may be started in all.
func (q *quota) batch(s Settings, state State, room uint64, f *flight, now time.Time) (n uint64, wait time.Duration) {
	if room == 0 || len(f.flying) > 0 && room < s.Batch/2 { // what is left of the threshold is not worth a request
		return 0, 0
	}
	if debt := q.cap.debt(now); debt > 0 {
		return 0, debt
	}
	n = q.whole(min(s.Batch, room))
	if q.cap.rate > 0 {
		n = min(n, q.nrIn(q.cap.rate/batchesASecond))
	}
	if state == Yielding {
		n = q.besideUsers(n, q.small(s.Batch), f.inWork, now)
	}
	return n, 0
}

// besideUsers cuts a batch of n regions to what users leave us, but for the floor, which is kept
// with small batches (I12).
func (q *quota) besideUsers(n, small, inWork uint64, now time.Time) uint64 {
	if q.yield.alone {
		return 0
	}
	allowed, flying := q.yield.allowed(q.bytes(small)), q.bytes(inWork)
	left := allowed - min(allowed, flying)
	switch {
	case flying == 0, left >= min(allowed, q.bytes(small))/2: // less is not worth a request
		return q.whole(min(n, q.nrIn(int64(left))))
	case q.floor.behind(q.bytes(min(n, small)), now):
		q.yield.forced = true
		return min(n, small)
	}
	return 0
}

// small is how many regions are a small batch.
func (q *quota) small(batch uint64) uint64 { return q.whole(min(batch, q.nrIn(yieldBytes))) }

// whole cuts a batch to whole requests of the source, of those no more than it takes at a time. On
// a disk of depth 1 that takes 127 KiB, batches of 1 MiB end with a request of 8 KiB, which lasts
// as long as the others; and several of them take turns there, end together, and fill the
// destination's queue at once while it was idle before: 4 KiB writes of users waited for 2.2 ms at
// p99 (342 us without hydration).
func (q *quota) whole(batch uint64) uint64 {
	bytes, request := int64(q.bytes(batch)), q.request
	if request == 0 || bytes <= request {
		return batch
	}
	if q.depth > 0 {
		bytes = min(bytes, request*int64(q.depth))
	}
	return q.nrIn(bytes / request * request)
}

// nrIn is how many regions bytes are, at least 1.
func (q *quota) nrIn(bytes int64) uint64 { return max(1, uint64(bytes/q.geo.RegionSize())) }

func (q *quota) bytes(regions uint64) uint64 { return regions * uint64(q.geo.RegionSize()) }

// spend books a copy of n regions to cap and floor.
func (q *quota) spend(n uint64, now time.Time) {
	bytes := q.bytes(n)
	q.cap.take(bytes, now)
	q.floor.take(bytes, now)
	q.floor.advance()
}
