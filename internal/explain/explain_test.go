package explain

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/ublk"
)

func TestDriverErrors(t *testing.T) {
	for _, c := range []struct {
		cause error
		code  int
	}{
		{fmt.Errorf("%w: load it", ublk.ErrNoDriver), exit.Feature},
		{fmt.Errorf("%w: zero copy", ublk.ErrNotSupported), exit.Feature},
		{fs.ErrPermission, exit.Denied},
		{unix.EPERM, exit.Denied},
		{errors.New("anything"), exit.Other},
		{nil, exit.OK},
	} {
		if err := Driver("open the driver", c.cause); exit.Code(err) != c.code {
			t.Errorf("%v: exit code %d, want %d", c.cause, exit.Code(err), c.code)
		}
	}
}
