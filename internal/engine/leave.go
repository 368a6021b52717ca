package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// A daemon leaves its device to the next one only if it can: a backend that does not answer would
// keep it from ending, and users from what is still served (I13). So it brings everything to rest
// first, while it can still go on:
//
//	1  background copies: none begins, those in flight end              users notice nothing
//	2  a commit, so that little is left for the last one                users notice nothing
//	3  no request of a user has been at work for long                   users notice nothing
//	4  the queues keep new requests, those at work end, at most         users wait for so long
//	   holdLimit; if they do not, the queues go on, and 3 is next
//
// For a daemon of the previous release, which opens the destination itself, the layer is led away from
// that before, and the private device goes with the daemon.
//
// If that does not succeed within a limit all goes on as it was. When it does, only what takes no
// time is left.

// drain brings everything to rest. It runs on the daemon's goroutine.
type drain struct {
	*devices.Devices
	session *session
	lanes   *lanes
	device  *blockDevice
	direct  *directPath
}

const (
	// holdLimit is how long users may wait in vain.
	holdLimit = 500 * time.Millisecond
	// longAtWork is from when on a request is not expected to end within holdLimit, and lookPause
	// between two looks.
	longAtWork = time.Second
	lookPause  = 100 * time.Millisecond
	// holdPause is between two tries, for users.
	holdPause = 1500 * time.Millisecond
)

// Drain brings everything to rest. With an error all has gone on.
func (d *drain) Drain(limit time.Duration, former bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	began := time.Now()
	d.direct.pause()
	if former {
		if err := d.direct.leadBack(ctx); err != nil {
			d.direct.goOn()
			return err
		}
		d.Ending.Plain = true
	}
	err := dataplane.OrderAll(ctx, dataplane.Order{Rest: true}, []*dataplane.Backend{d.lanes.background.Backend}) // 1
	if err != nil {
		err = fmt.Errorf("%d background copies have not ended", d.lanes.background.Status().InFlight)
	} else if err = d.session.commitWithin(ctx); err == nil { // 2
		err = d.holdUsers(ctx)
	}
	if err == nil {
		return nil
	}
	d.GoOn()
	if n := d.Source.Reading(); n > 0 {
		err = fmt.Errorf("%w; %d reads of the source %s are in flight", err, n, d.Wanted.Definition.Source)
	}
	return &exit.Error{Code: exit.Timeout, Doing: "leave", Object: d.device.path(), Cause: fmt.Errorf("%w after %s", err, time.Since(began).Round(time.Second)),
		Next: "The daemon goes on serving. Try again when the device that does not answer does."}
}

// GoOn takes a drain back.
func (d *drain) GoOn() {
	d.Ending.Plain = false
	d.direct.goOn()
	if d.device.Device != nil {
		d.device.Release()
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookPause)
	defer cancel()
	b := d.lanes.background.Backend
	_ = dataplane.OrderAll(ctx, dataplane.Order{Dest: b.Dest}, []*dataplane.Backend{b}) // it obeys in its next round
}

// holdUsers is 3 and 4.
func (d *drain) holdUsers(ctx context.Context) error {
	ages := ages{since: make([]time.Time, len(d.lanes.frontends)), oldest: make([]uint64, len(d.lanes.frontends))}
	pause := lookPause
	for {
		requests, age := 0, time.Duration(0)
		for look := 0; ; look++ { // the first sees every request for the first time
			var err error
			if requests, age, err = d.lookAtWork(ctx, &ages); err != nil {
				return err
			}
			if look > 0 && age == 0 || age >= longAtWork {
				break
			}
			time.Sleep(lookPause)
		}
		err := fmt.Errorf("%d requests of users have not ended, one for %s", requests, age.Round(100*time.Millisecond))
		if age < longAtWork {
			if err = d.device.Hold(holdLimit); err == nil {
				return nil
			}
			pause = holdPause
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// ages is since when each queue's oldest request has been seen at work.
type ages struct {
	oldest []uint64
	since  []time.Time
}

// see gives the time for which that request has been seen; 0: this is the first time, or there is
// none.
func (a *ages) see(queue int, w dataplane.Work, now time.Time) time.Duration {
	if w.Oldest == 0 || w.Oldest != a.oldest[queue] {
		a.oldest[queue], a.since[queue] = w.Oldest, now
	}
	if w.Oldest == 0 {
		return 0
	}
	return now.Sub(a.since[queue])
}

// lookAtWork is how many requests are at work, and the longest that one has been seen.
func (d *drain) lookAtWork(ctx context.Context, a *ages) (requests int, age time.Duration, err error) {
	for i, lane := range d.lanes.users() {
		var w dataplane.Work
		if err := dataplane.OrderAll(ctx, dataplane.Order{Look: func(found dataplane.Work) { w = found }}, []*dataplane.Backend{lane}); err != nil {
			return 0, 0, fmt.Errorf("queue %d does not answer", i)
		}
		requests += w.Requests
		age = max(age, a.see(i, w, time.Now()))
	}
	return requests, age, nil
}
