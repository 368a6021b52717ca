package holders

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// Busy names who keeps a device from being deleted.
func Busy(device string, holders []blockdev.Holder) error {
	var cause error
	for _, h := range holders {
		if cause == nil {
			cause = errors.New(h.String())
		} else {
			cause = fmt.Errorf("%w; %s", cause, h)
		}
	}
	return &exit.Error{Code: exit.Busy, Doing: "delete", Object: device, Cause: cause, Next: "Unmount it or end whoever uses it, then try again."}
}

// Of are those who have the block device of a clone open, or the layer over it, which itself is
// none.
func Of(device string, cookie uint64) ([]blockdev.Holder, error) {
	holders, err := blockdev.Holders(device)
	if err != nil {
		return nil, err
	}
	over, err := blockdev.MappedOver(device)
	for _, m := range over {
		if l := (dm.Layer{Clone: dm.UUIDOf(m.UUID)}); !l.IsOf(cookie) {
			continue
		}
		holders = slices.DeleteFunc(holders, m.Is)
		above, errAbove := blockdev.Holders(m.Path)
		holders, err = append(holders, above...), errors.Join(err, errAbove)
	}
	return holders, err
}
