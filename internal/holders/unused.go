package holders

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/process"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/internal/text"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// pause is between two looks at who has a device open.
const pause = 50 * time.Millisecond

// Only del and --force take a block device from its users, and the users are whoever the kernel
// says. From 7.0 on the driver stops a device only if nobody has it open (TRY_STOP_DEV). On an
// earlier kernel, with everybody looked for who can be seen (users):
//
//	1  nobody whom nothing shows has it open, by the count of the driver's references (blockdev.HiddenUsers)
//	2  it is opened exclusively, which whoever has claimed it prevents: a mount in any namespace, device-mapper, swap, LIO.
//	   Until 4 nobody can claim it
//	3  the device is stopped
//	4  the exclusive open is given up
//
// The open of step 2 is a process of its own. Whoever opens a block device may have to wait for
// somebody who reads its partitions, and a daemon with a thread in such a wait could not be killed,
// and so not be recovered.

// StopUnused stops a device that nobody uses; exit code 5 says who does.
func StopUnused(ctx context.Context, control *ublk.Control, id int, stop func() error) error {
	path := ublk.BlockPath(id)
	err := control.TryStop(ctx, id)
	switch {
	case errors.Is(err, unix.EBUSY):
		return busyDevice(path, "somebody has it open")
	case !errors.Is(err, ublk.ErrNotSupported):
		if err == nil && stop != nil {
			err = stop()
		}
		return explain.Driver("stop the block device", err)
	}
	if err := noHiddenUsers(path); err != nil { // 1
		return err
	}
	release, err := claimDevice(path) // 2
	if err != nil {
		return err
	}
	defer release() // 4
	if stop == nil {
		return explain.Driver("stop the block device", control.StopDev(ctx, id))
	}
	return explain.Driver("stop the block device", stop()) // 3
}

func busyDevice(path, why string) error {
	return &exit.Error{Code: exit.Busy, Doing: "delete", Object: path, Cause: errors.New(why),
		Next: "End whoever uses it, then try again; `ublk-clone del --force` takes it away anyway, and its users get errors."}
}

// hiddenLimit is how long somebody unknown may be a process that is just opening or closing a
// device.
const hiddenLimit = time.Second

// noHiddenUsers fails with exit code 5 if somebody has the block device open, or may have, whom
// nothing else shows.
func noHiddenUsers(path string) error {
	for deadline := time.Now().Add(hiddenLimit); ; time.Sleep(pause) {
		named, unknown := blockdev.HiddenUsers(path)
		switch {
		case len(named)+unknown == 0:
			return nil
		case time.Now().Before(deadline):
			continue
		case len(named) > 0:
			return Busy(path, named)
		}
		return busyDevice(path, fmt.Sprintf("the kernel counts %s of a ublk device that no process, mount or device shows, "+
			"as of a descriptor on its way from one process to another", text.Times(unknown, "open")))
	}
}

// ClaimCommand is the hidden command that holds a block device open exclusively until its standard
// input ends.
const ClaimCommand = "claim"

// claimLimit is for the start of that process and its open.
const claimLimit = 10 * time.Second

// claimDevice opens a block device exclusively, in a process of its own; release ends that. Exit
// code 5: somebody else has claimed it, or the open does not end.
func claimDevice(path string) (release func(), err error) {
	cmd := exec.Command(sys.Program, ClaimCommand, path)
	cmd.Env, cmd.Dir = process.DaemonEnv(os.Environ()), "/"
	in, errIn := cmd.StdinPipe()
	out, errOut := cmd.StdoutPipe()
	if err := errors.Join(errIn, errOut); err != nil {
		return nil, claimError(path, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, claimError(path, err)
	}
	said := make(chan string, 1)
	guard.Go("read what a claim says", func() {
		line, _ := bufio.NewReader(io.LimitReader(out, 1<<10)).ReadString('\n')
		said <- strings.TrimSpace(line)
	})
	release = func() { _ = in.Close(); _ = cmd.Wait() }
	select {
	case line := <-said:
		if line == claimed {
			return release, nil
		}
		release()
		if line == claimTaken {
			return nil, busyDevice(path, "somebody holds it exclusively, as a mount in another namespace or a target of the kernel does")
		}
		return nil, claimError(path, errors.New(line))
	case <-time.After(claimLimit):
		_ = cmd.Process.Kill()
		guard.Go("end a claim", release) // it may wait for the device, and for as long
		return nil, busyDevice(path, "opening it hangs: somebody else is opening it, or is reading its partitions")
	}
}

func claimError(path string, err error) error {
	return &exit.Error{Code: exit.Other, Doing: "open exclusively", Object: path, Cause: err, Next: "Try again."}
}

// What the process of claimDevice says.
const (
	claimed    = "claimed"
	claimTaken = "taken"
)

// Serve is that process: it holds the device as long as in lasts, and says on out how that went.
func Serve(path string, in io.Reader, out io.Writer) error {
	f, err := sys.Open(path, os.O_RDONLY|os.O_EXCL, 0)
	switch {
	case errors.Is(err, syscall.EBUSY):
		_, err = fmt.Fprintln(out, claimTaken)
		return err
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENXIO): // gone already
	case err != nil:
		_, err = fmt.Fprintln(out, err)
		return err
	default:
		defer f.Close()
	}
	if _, err := fmt.Fprintln(out, claimed); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	return err
}
