package hydrate

import (
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
)

// How much hydration has in flight beside users is chosen by what it costs them: the time that
// their reads of the source take with hydration beside them, to the same alone.
//
//	          windowReads reads            every probeEvery
//	beside --------------------> judge ----------------------> alone: nothing of ours in flight
//	  ^                            |                             |
//	  +--- one step more or less --+                             | windowReads reads, or probeLimit
//	  +----------------------------------------------------------+
//
// It begins with one small batch (yieldBytes). Under growBelow there is one more with each window,
// over shrinkAbove for two of them half as much, as long as that helps; between them all stays as
// it is. The two are that far apart for a disk of depth 1: there any batch makes a reader's time
// double, and a smaller one hardly less. One small batch then is right, and a second one (three
// times) is never tried.
//
// A time alone that is old is no reason to take less: users may ask for more at a time than before.
// Then they are measured alone again first, and so they are when their reads take less beside us
// than they took alone. And what is measured must be most of what users do: of requests for
// hydrated regions, and of writes, nothing is known, so beside those there is one small batch at
// most.
//
// Measured in the counting guest (TestBenchReaders, TestBenchWideSource, 6.18, S=4) with one reader
// of 4 KiB of unhydrated regions, and in yield_test.go, where the source's time is computed (the
// last four; the disk has a seek of 3 to 13 ms):
//
//	                                      always one small batch     by what it costs
//	source                        alone    a read   hydrated         a read   hydrated
//	disk of depth 1               5.65 ms  11.4 ms  11.5 MB/s        11.4 ms  11.5 MB/s
//	depth 64, 5 ms                5.06 ms  5.11 ms  56.5 MB/s        6.20 ms  343 MB/s
//	disk of depth 1, 150 MB/s     7.86 ms  16.8 ms  7.56 MB/s        16.3 ms  7.28 MB/s
//	depth 64, 80 us, 3 GB/s       81 us    90 us    1456 MB/s        133 us   2020 MB/s
//	depth 64, 20 ms, 200 MB/s     20.0 ms  21.3 ms  12.3 MB/s        25.1 ms  162 MB/s
//	depth 64, 1 ms, 5 MB/s        1.82 ms  53.4 ms  4.9 MB/s         4.39 ms  3.8 MB/s
const (
	// windowReads are so many that a disk's mean is known to 10 %, and fewestReads say something.
	windowReads = 16
	fewestReads = 4
	growBelow   = 1.5
	shrinkAbove = 2.5
	// regrowBelow is for less than a small batch: a disk of depth 1 takes twice the time whatever
	// there is beside a reader.
	regrowBelow = 2.1
	doubtBelow  = 0.75
	// helps: a smaller share that leaves users with more than that of what they had waited is given
	// back.
	helps = 0.85
	// probeLimit bounds the time alone, where reads take long, and the wait for what is in flight
	// before a window. A pace's saving is longer: the floor is kept over a probe.
	probeLimit = 250 * time.Millisecond
	// probeEvery and doubtAfter are in times that the last probe took: probes are a thirtieth of
	// the time, and at most a ninth where users' load changes all the time.
	probeEvery = 32
	doubtAfter = 8
	// leastShare of a small batch, 4 KiB: on a slow line that is most of what there is.
	leastShare = 1.0 / 64
	// lingering is how long a reader counts as there when its last read has ended: with one read at
	// a time there is none in flight just when it is looked, now and then, and all of the threshold
	// would come before its next one.
	lingering = 20 * time.Millisecond
	// forgetAfter a time without users' reads of the source all begins anew.
	forgetAfter = 2 * time.Second
)

// stopwatch is the core: what it knows about users' reads of the source.
type stopwatch interface {
	Waits() clone.Waits
	NewPeriod() clone.Waits
}

// yield is the state of it.
type yield struct {
	share float64 // of what users leave us: small batches in flight
	alone bool    // the window is a probe
	// open: the window has begun, at began; it was asked for at asked, when more than allowed was
	// in flight yet.
	open         bool
	asked, began time.Time
	from         clone.Waits   // when it began
	base         time.Duration // of a read alone; 0 = not known
	slow         bool          // the last window was over shrinkAbove
	cut          float64       // what a read took when the share was halved last, in the window after that
	kept         bool          // a smaller share has not helped: there is none until the next probe
	forced       bool          // the floor has taken more in this window than is allowed: what it costs says nothing
	probed       time.Time     // end of the last probe
	took         time.Duration // it
	reads        int64         // when last looked
	read         time.Time     // when there was a new one
}

// reading says whether users read from the source, or have just done so.
func (y *yield) reading(now time.Time, w clone.Waits) bool {
	if w.Reads != y.reads {
		y.reads, y.read = w.Reads, now
	}
	return now.Sub(y.read) < lingering
}

// away: no users are there, so hydration does not yield, and a window of what was is worth nothing.
func (y *yield) away() { y.open, y.alone, y.asked = false, false, time.Time{} }

// forget what was learned.
func (y *yield) forget() { *y = yield{share: 1, reads: y.reads, read: y.read} }

// allowed is how many bytes may be in flight, when a small batch has that many.
func (y *yield) allowed(small uint64) uint64 {
	if y.alone {
		return 0
	}
	return uint64(y.share * float64(small))
}

// look at users. bytes are in flight, small are a small batch, and most of them are all that could
// be.
func (y *yield) look(now time.Time, s stopwatch, bytes, small uint64, most float64) {
	if now.Sub(y.read) > forgetAfter {
		y.forget()
	}
	if y.open {
		y.end(now, s.Waits(), most)
	}
	if y.open {
		return
	}
	if y.asked.IsZero() {
		y.asked = now
	}
	if bytes <= max(y.allowed(small), small) && !y.alone || bytes == 0 || now.Sub(y.asked) >= probeLimit {
		y.open, y.began, y.from = true, now, s.NewPeriod()
	}
}

// next asks for a window.
func (y *yield) next(now time.Time, alone bool) { y.open, y.alone, y.asked = false, alone, now }

// end of the window, if there is enough in it.
func (y *yield) end(now time.Time, w clone.Waits, most float64) {
	n := w.Timed - y.from.Timed
	mean := (w.Time - y.from.Time) / time.Duration(max(1, n))
	switch {
	case y.alone && (n >= windowReads || now.Sub(y.asked) >= probeLimit):
		if y.base = mean; n < fewestReads { // nothing is known
			y.base, y.share = 0, min(y.share, 1)
		}
		y.probed, y.took = now, now.Sub(y.asked)
		y.next(now, false)
	case !y.alone && (n >= windowReads || y.base > 0 && float64(mean)*float64(n) > shrinkAbove*windowReads*float64(y.base)):
		y.judge(now, w, float64(mean), most)
	}
}

// judge what users' reads take beside us.
func (y *yield) judge(now time.Time, w clone.Waits, mean, most float64) {
	if y.forced {
		y.forced, y.cut = false, 0
		y.next(now, false)
		return
	}
	age, base := y.began.Sub(y.probed), float64(y.base)
	alone, doubtful := false, age > doubtAfter*y.took
	before, cut := y.slow, y.cut
	y.slow, y.cut = base > 0 && mean > shrinkAbove*base, 0
	switch {
	case cut > 0 && mean > helps*cut:
		y.share, y.kept = 2*y.share, true
	case y.slow && !before: // once may be anything
	case base > 0 && doubtful && (y.slow && !y.kept || mean < doubtBelow*base):
		alone = true
	case y.slow && !y.kept:
		y.share, y.cut = max(leastShare, y.share/2), mean
	case age > probeEvery*y.took:
		// What was given up may have been given up for nothing, on a day of noise.
		alone, y.share, y.kept = true, max(y.share, min(1, 2*y.share)), false
	case base > 0 && (mean < growBelow*base || y.share < 1 && mean < regrowBelow*base):
		y.share = min(y.share+min(y.share, 1), max(1, most))
	}
	if y.base > 0 {
		y.base = min(y.base, time.Duration(mean)) // with us beside them it is not less than alone
	}
	if measured, all := w.Reads-y.from.Reads, w.Requests-y.from.Requests; 2*measured < all {
		y.share = min(y.share, 1)
	}
	y.next(now, alone)
}
