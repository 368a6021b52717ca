package direct

import (
	"errors"
	"fmt"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/faults"
)

// Layer is what an exchange does with a layer: dm.Over.
type Layer interface {
	// LoadDirect loads a table that leads to dest in the direct extents.
	LoadDirect(dest uint64, direct []dm.Extent) error
	// Suspend waits for the requests at work, at most until limit; with an error nothing waits.
	Suspend(limit time.Duration) error
	// Resume lets the layer go on, with the table that is loaded if there is one.
	Resume() error
	// Clear gives up the table that is loaded.
	Clear() error
}

// SuspendLimit is how long users wait at most for an exchange that does not come about.
const SuspendLimit = 50 * time.Millisecond

// ErrStuck: an exchange could not be taken back, and the layer's users wait.
var ErrStuck = errors.New("the layer is suspended, and does not go on")

// Exchange leads the direct extents to dest and all else to the clone. With an error the layer is as
// it was, but for ErrStuck.
func Exchange(l Layer, dest uint64, direct []dm.Extent) error {
	if err := l.LoadDirect(dest, direct); err != nil { // 1
		return errors.Join(err, l.Clear())
	}
	err := faults.Exchange(1)
	if err == nil {
		err = l.Suspend(SuspendLimit) // 2
	}
	if err != nil {
		return errors.Join(err, l.Clear())
	}
	if err = faults.Exchange(2); err == nil {
		err = l.Resume() // 3
	}
	if err == nil {
		_ = faults.Exchange(3) // it has come about
		return nil
	}
	if back := errors.Join(l.Clear(), l.Resume()); back != nil { // before, so that it resumes with the table of before
		return fmt.Errorf("%w: %w: %w", ErrStuck, err, back)
	}
	return err
}
