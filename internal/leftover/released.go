package leftover

import (
	"errors"
	"os/exec"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/internal/systemd"
	"github.com/ublk-clone/ublk-clone/internal/udev"
)

// Released is the last of a finish: it tells unit and udev, which has hidden the destination, that
// the clone is finished. Nothing of it is left by then but perhaps the layer.
func Released(def *definition.Definition) (err error) {
	if def.Unit != "" {
		err = systemd.ByUnit("disable", def.Unit, def.Name)
	}
	if dest, errStat := sys.StatPath(def.Dest); errStat == nil && dest.IsBlock() {
		_ = exec.Command("timeout", "5s", "udevadm", "control", "--reload").Run() // it looks for new rules every 3 s only, if it is there
		err = errors.Join(err, udev.Announce(def.Dest))
	}
	return err
}
