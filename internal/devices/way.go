package devices

import (
	"errors"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/dm"
)

// destWay reaches the destination of a clone with a layer through its private device (dm.Under).
// The daemon's goroutine alone opens and closes.
type destWay struct {
	under *dm.Under
	def   *definition.Definition
	dry   bool // nothing is to be changed
}

// There is the path of the private device, if it is there and leads to the destination. It is made
// if only the layer leads there: somebody has removed it.
func (w destWay) There(number uint64, size int64) (string, error) {
	l, err := w.under.Find()
	if err == nil && l == nil && !w.dry {
		if layer := w.layer(); layer != nil && layer.Reaches(number) {
			l, err = w.under.Lay(number, size)
		}
	}
	if err != nil || l == nil || !l.LeadsTo(number) {
		return "", err
	}
	return l.Path(), nil
}

func (w destWay) Lay(number uint64, size int64) (string, error) {
	l, err := w.under.Lay(number, size)
	if err != nil {
		return "", err
	}
	return l.Path(), nil
}

// Own are the private device and, where a daemon has left it or leaves it, the layer.
func (w destWay) Own() (all []uint64) {
	if l, err := w.under.Find(); err == nil && l != nil {
		all = append(all, l.Dev)
	}
	if l := w.layer(); l != nil {
		all = append(all, l.Dev)
	}
	return all
}

// layer is the clone's, nil if there is none.
func (w destWay) layer() *dm.Layer {
	l, err := dm.Named(w.def.DM)
	if err != nil || l == nil || !l.IsOf(w.def.Cookie) {
		return nil
	}
	return l
}

// GoThrough has the destination of a clone with a layer reached through its private device: said
// before it is opened.
func (d *DestSide) GoThrough() { d.under = dm.NewUnder(&d.Wanted.Definition) }

// way is nil where the destination is opened itself.
func (d *DestSide) way() blockdev.Way {
	if d.under == nil {
		return nil
	}
	return destWay{d.under, &d.Wanted.Definition, d.Wanted.DryRun}
}

// close closes the destination, and removes the private device unless the block device is left to
// the next daemon: as long as it is there nobody else can have the destination.
func (d *DestSide) close() error {
	var err error
	if d.Device != nil {
		err = d.Device.Close()
	}
	if d.Ending.Keep && !d.Ending.Plain || d.Wanted.DryRun {
		return err
	}
	return errors.Join(err, d.under.Remove())
}
