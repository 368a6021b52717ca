package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// A request does not outlive whoever sent it. Its context ends when
//
//	the client hangs up     it was interrupted or killed, or has given up
//	its time has passed     LimitMS, counted from the request's arrival: a client that is stopped, or a
//	                        daemon that was busy, must not lead to a clone that ends minutes later
//
// Whatever waits for a request waits for its context too. Whoever is about to end or change
// something calls still just before: the context may learn of a client's end up to HangUpPause
// late, still does not.

// HangUpPause is between two looks whether a client that waits is there.
const HangUpPause = 50 * time.Millisecond

var (
	ErrHungUp = errors.New("whoever asked for it has gone")
	errLate   = errors.New("it could not begin in the time that it was given")
)

// clientKey is where the context of a request keeps the client's connection.
type clientKey struct{}

// withClient gives a request its context. The caller cancels it when the request is answered.
func withClient(conn net.Conn, req *Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.WithValue(context.Background(), clientKey{}, conn))
	release := func() { cancel(nil) }
	if req.LimitMS > 0 {
		late, stop := context.WithTimeoutCause(ctx, time.Duration(req.LimitMS)*time.Millisecond, errLate)
		ctx, release = late, func() { stop(); cancel(nil) }
	}
	guard.Go("watch a client", func() { watchClient(ctx, conn, cancel) })
	return ctx, release
}

// watchClient ends the context when the client hangs up.
func watchClient(ctx context.Context, conn net.Conn, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(HangUpPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if hasHungUp(conn) {
				cancel(ErrHungUp)
				return
			}
		}
	}
}

// hasHungUp says whether the client has closed its connection. One that has only said that it will
// send nothing more waits for the answer.
func hasHungUp(conn net.Conn) bool {
	c, ok := conn.(*net.UnixConn)
	return ok && sys.HungUp(c)
}

// Still fails, with exit code 11, if nobody waits for the request any more.
func Still(ctx context.Context) error {
	why := context.Cause(ctx)
	if conn, ok := ctx.Value(clientKey{}).(net.Conn); why == nil && ok && hasHungUp(conn) {
		why = ErrHungUp
	}
	if why == nil {
		return nil
	}
	var e *exit.Error
	if errors.As(why, &e) {
		return e
	}
	return &exit.Error{Code: exit.Timeout, Doing: "carry out the request", Cause: why, Next: "Nothing was changed. Try again."}
}

// PauseWith waits for d, or for the end of the context: then it returns what still does.
func PauseWith(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return Still(ctx)
}

// beginLimit is how long a daemon has to begin with what ends it, beyond the time that it may wait
// for users. The rest of the client's patience is for the end itself.
const beginLimit = 10 * time.Second

// limited gives a request of a client that waits for the answer until limit the time in which the
// daemon must begin.
func (r Request) limited(limit time.Duration) Request {
	if r.LimitMS != 0 || !r.ends() && !r.changes() {
		return r
	}
	rest := min(limit/2, 5*time.Second) // for the answer
	if r.ends() {
		rest = min(limit*5/6, StopLimit-beginLimit)
	}
	r.LimitMS = max(1, (limit - rest).Milliseconds())
	return r
}

// plain is the same request for a daemon of a release that knows neither limits nor force: such a
// daemon refuses a request with a field that it does not know, and has done nothing then.
func (r Request) plain(refused *WireError) (Request, bool) {
	if refused == nil || refused.Code != exit.Usage || refused.Cause != unknownField("limit_ms") && refused.Cause != unknownField("force") {
		return r, false
	}
	r.LimitMS, r.Force = 0, false
	return r, true
}

// unknownField is the cause of a refusal for a field that is not known, as encoding/json words it.
func unknownField(name string) string { return fmt.Sprintf("json: unknown field %q", name) }
