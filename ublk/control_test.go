package ublk

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/ublk/uring"
)

// zeroControl is a Control on /dev/zero, which refuses every command: the way to the kernel and
// back without a driver.
func zeroControl(t *testing.T) *Control {
	t.Helper()
	f, err := os.OpenFile("/dev/zero", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	thread, err := startControlThread(f)
	if err != nil {
		t.Fatal(err)
	}
	c := &Control{file: f, thread: thread}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close control: %v", err)
		}
	})
	return c
}

// TestCommandsFromManyGoroutines: more commands than there are slots, each with its own result.
func TestCommandsFromManyGoroutines(t *testing.T) {
	c := zeroControl(t)
	var wg sync.WaitGroup
	for id := range 4 * controlSlots {
		wg.Go(func() {
			for range 20 {
				err := c.StopDev(context.Background(), id)
				var refused *CommandError
				if !errors.As(err, &refused) || refused.Device != id || refused.Command != "STOP_DEV" || refused.Errno != unix.EOPNOTSUPP {
					t.Errorf("device %d: %v", id, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestGivenUpCommand: a command that the kernel gave up before it began is issued again, one that
// was cancelled here is not.
func TestGivenUpCommand(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, cancelled := range []bool{false, true} {
		c := &command{name: "STOP_DEV", done: make(chan int32, 1), cancelled: cancelled}
		th := &controlThread{scratch: make([]byte, controlSlots*slotSize)}
		loop, err := uring.NewLoop(th, uring.LoopOptions{Commands: controlSlots, BigSQE: true})
		if err != nil {
			t.Fatal(err)
		}
		defer loop.Close()
		th.loop, th.slots[3] = loop, c
		th.Command(3, -int32(unix.ECANCELED))
		again := th.slots[3] == c && c.given == 1 && len(c.done) == 0
		ended := th.slots[3] == nil && len(c.done) == 1
		if again == cancelled || ended != cancelled {
			t.Errorf("cancelled %v: issued again %v, ended %v", cancelled, again, ended)
		}
	}
}

func TestUnsupported(t *testing.T) {
	c := zeroControl(t)
	ctx := context.Background()
	_, features := c.Features(ctx)
	for name, err := range map[string]error{"GET_FEATURES": features, "TRY_STOP": c.TryStop(ctx, 0), "DEL_DEV_ASYNC": c.DelDevAsync(ctx, 0)} {
		if !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s: %v, want a FeatureError", name, err)
		}
	}
}

func TestCommandTimeout(t *testing.T) {
	c := zeroControl(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		err := c.DelDev(ctx, 7)
		var refused *CommandError
		if errors.As(err, &refused) {
			continue // the answer was there as soon as the end of the context
		}
		var timeout *TimeoutError
		if !errors.As(err, &timeout) || timeout.Device != 7 || timeout.Command != "DEL_DEV" || !errors.Is(err, context.Canceled) {
			t.Fatalf("command with an ended context: %v", err)
		}
		break
	}
	if err := c.StopDev(context.Background(), 7); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("the command after: %v", err)
	}
}

func TestControlClosed(t *testing.T) {
	f, err := os.OpenFile("/dev/zero", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	thread, err := startControlThread(f)
	if err != nil {
		t.Fatal(err)
	}
	c := &Control{file: f, thread: thread}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.StopDev(context.Background(), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("command after close: %v", err)
	}
}

func TestExplainOpen(t *testing.T) {
	missing := explainOpen(&fs.PathError{Op: "open", Path: controlPath, Err: unix.ENOENT})
	if !errors.Is(missing, ErrNoDriver) || !strings.Contains(missing.Error(), "ublk_drv") {
		t.Errorf("no node: %v", missing)
	}
	denied := explainOpen(&fs.PathError{Op: "open", Path: controlPath, Err: unix.EACCES})
	if errors.Is(denied, ErrNoDriver) || !errors.Is(denied, fs.ErrPermission) || !strings.Contains(denied.Error(), "root") {
		t.Errorf("no permission: %v", denied)
	}
}
