package daemon

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/process"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/internal/systemd"
)

// readyFD is the descriptor over which the daemon reports: the first of
// exec.Cmd's ExtraFiles.
const readyFD = 3

// DaemonCommand is the hidden command that the daemon runs as.
const DaemonCommand = "daemon"

// Spawn starts a daemon: this program again, in a session of its own, with
// the definition on standard input, its log as output, and a pipe to report
// over. It returns when the clone is up, with the path of the device, or with
// the daemon's error; then the daemon has ended and nothing is left.
func Spawn(d control.Dir, st definition.Start) (string, error) {
	name := st.Definition.Name
	log, err := os.OpenFile(d.LogPath(name), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil && st.Recover { // users wait, and can do without
		log, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	if err != nil {
		return "", d.Fail("make log", d.LogPath(name), err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return "", spawnError(name, err)
	}
	defer r.Close()
	program, err := os.Executable() // not /proc/self/exe: the process would be called "exe"
	if err != nil {
		return "", spawnError(name, err)
	}
	cmd := exec.Command(program, DaemonCommand)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = process.Start(cmd, st)
	w.Close()
	if err != nil {
		return "", spawnError(name, err)
	}
	device, err := awaitReady(d, cmd, r, st)
	if err == nil {
		return device, cmd.Process.Release()
	}
	return "", err
}

// limit is how long such a start may take.
func limit(st *definition.Start) time.Duration {
	limit := control.StartLimit + st.Fence
	if st.Replace {
		limit += control.LeaveLimit + control.StopLimit
	}
	return limit
}

func spawnError(name string, err error) error {
	return &exit.Error{Code: exit.Other, Doing: "start the daemon of", Object: name, Cause: err}
}

// awaitReady waits for the daemon's report. A daemon that fails is waited for,
// so that nothing of it is left when the error is shown; one that is silent is
// told to end.
func awaitReady(d control.Dir, cmd *exec.Cmd, pipe *os.File, st definition.Start) (string, error) {
	name, limit := st.Definition.Name, limit(&st)
	if err := pipe.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return "", spawnError(name, err)
	}
	line, err := bufio.NewReader(io.LimitReader(pipe, control.MaxLine)).ReadBytes('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", giveUp(d, cmd, name, limit)
	}
	var got readiness
	if err == nil {
		err = json.Unmarshal(line, &got)
	}
	if err == nil && got.Error == nil {
		return got.Device, nil
	}
	waitErr := endOf(cmd)
	if err != nil {
		return "", spawnError(name, fmt.Errorf("it ended (%v) and said: %s", waitErr, d.Tail(name, 5)))
	}
	return "", got.Error.Err()
}

// endOf waits for the end of a daemon that has reported its error. One with a read of a device that
// hangs cannot end before that does, and is not waited for.
func endOf(cmd *exec.Cmd) error {
	ended := make(chan error, 1)
	guard.Go("end of a daemon", func() { ended <- cmd.Wait() })
	select {
	case err := <-ended:
		return err
	case <-time.After(control.EndLimit):
		return errors.New("it waits for a device before it can end")
	}
}

// giveUp ends a daemon that did not come up in time.
func giveUp(d control.Dir, cmd *exec.Cmd, name string, limit time.Duration) error {
	err := cmd.Process.Signal(syscall.SIGTERM)
	return &exit.Error{Code: exit.Timeout, Doing: "start the daemon of", Object: name,
		Cause: errors.Join(fmt.Errorf("not ready after %s; it was told to end", limit), err), Next: "See " + d.LogPath(name) + "."}
}

// Host makes this process a daemon.
type Host struct {
	Dir       control.Dir
	NewEngine func(definition.Start, zerolog.Logger) Engine
	Try       func(definition.Start) (*control.DryRun, error) // a dry run
	Look      func(control.Dir, *definition.Definition) error
	Out       io.Writer
}

// RunSpawned is the daemon's side of spawn.
func (h *Host) RunSpawned() error {
	var st definition.Start
	err := process.Relocate()
	sys.CloseOnExec(readyFD)
	pipe := os.NewFile(readyFD, "readiness pipe")
	if err == nil {
		st, err = readStart(os.Stdin)
	}
	if err == nil {
		err = sys.ReplaceByNull(0)
	}
	if err != nil {
		return errors.Join(err, readiness{Error: control.ToWire(err)}.report(pipe))
	}
	if st.DryRun {
		t, err := h.Try(st)
		return readiness{DryRun: t, Error: control.ToWire(err)}.report(pipe)
	}
	if st.Look {
		return readiness{Error: control.ToWire(h.Look(h.Dir, &st.Definition))}.report(pipe)
	}
	writer := newAsyncWriter(&boundedFile{file: os.Stderr, max: logBytes})
	defer writer.close(time.Second)
	log := newLog(os.Stderr, writer)
	d := New(h.Dir, st, h.NewEngine(st, log), log)
	if err := sys.SetLimits(); err != nil {
		d.engine.Warn("the daemon keeps the limits of whoever started it: %v", err)
	}
	if err := systemd.EnterScope(st.Definition.Name); err != nil {
		d.engine.Warn("the daemon will be killed when the unit or session that started it ends: %v", err)
	}
	err = d.run(func(device string, err error) {
		if err := (readiness{Device: device, Error: control.ToWire(err)}).report(pipe); err != nil {
			log.Warn().Err(err).Msg("report to the command that started this daemon")
		}
	})
	return err
}

// RunForeground is the daemon in this very process, for a service manager. It
// prints the device's path when the clone is up. differs is what the clone's
// definition says otherwise than what it takes over.
func (h *Host) RunForeground(st definition.Start, differs string) error {
	err := process.Renew()
	if err == nil {
		err = process.Relocate()
	}
	if err == nil {
		err = sys.ReplaceByNull(0)
	}
	if err != nil {
		return err
	}
	writer := newAsyncWriter(os.Stderr)
	defer writer.close(time.Second)
	log := newLog(os.Stderr, writer)
	d := New(h.Dir, st, h.NewEngine(st, log), log)
	d.manager = FindManager(log)
	if differs != "" {
		d.engine.Warn("the clone goes on as it was, and its definition has changed since: its %s", differs)
	}
	return d.run(func(device string, err error) {
		if err != nil {
			return
		}
		_, err = fmt.Fprintln(h.Out, cmp.Or(d.currentStatus().UserPath(), device))
		if err = errors.Join(err, sys.ReplaceByNull(1)); err != nil {
			log.Warn().Err(err).Msg("print the device")
		}
	})
}

func readStart(r io.Reader) (definition.Start, error) {
	var st definition.Start
	b, err := io.ReadAll(io.LimitReader(r, control.MaxLine))
	if err == nil {
		err = control.DecodeKnown(b, &st)
	}
	if err != nil {
		return st, &exit.Error{Code: exit.Usage, Doing: "read the definition from standard input", Cause: err, Next: "Use `ublk-clone add`."}
	}
	return st, nil
}
