package events

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
)

func TestFailures(t *testing.T) {
	var f Failures
	if len(f.List()) != 0 {
		t.Errorf("nothing has failed: %+v", f.List())
	}
	now := time.Unix(1000, 0)
	f.Add(blockdev.Dest, 4096, os.ErrInvalid, now)
	f.Add(blockdev.Dest, 8192, syscall.ENOSPC, now)
	got := f.List()
	if len(got) != 1 || got[0] != (control.FailedIO{Side: "destination", Requests: 2, Offset: 8192, Error: syscall.ENOSPC.Error(), Time: now.UTC()}) {
		t.Errorf("failures %+v", got)
	}
}
