package daemon

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/process"
	"github.com/ublk-clone/ublk-clone/internal/steps"
)

// Try starts the process and waits for its report.
func Try(d control.Dir, st definition.Start) (*control.DryRun, error) {
	name := st.Definition.Name
	r, w, err := os.Pipe()
	if err != nil {
		return nil, spawnError(name, err)
	}
	defer r.Close()
	program, err := os.Executable()
	if err != nil {
		return nil, spawnError(name, err)
	}
	cmd := exec.Command(program, DaemonCommand)
	cmd.ExtraFiles, cmd.Dir = []*os.File{w}, "/"
	err = process.StartWith(cmd, st)
	w.Close()
	if err != nil {
		return nil, spawnError(name, err)
	}
	gone := make(chan struct{})
	guard.Go("dry run", func() { _ = cmd.Wait(); close(gone) })
	got, err := awaitTrial(d, r, name)
	if err != nil {
		_ = cmd.Process.Kill() // it may be kept by a device; what it has locked is free when that lets go
		return nil, err
	}
	select { // so that nothing of it is left
	case <-gone:
	case <-time.After(steps.UndoLimit):
	}
	return got.DryRun, got.Error.Err()
}

func awaitTrial(d control.Dir, pipe *os.File, name string) (got readiness, err error) {
	if err := pipe.SetReadDeadline(time.Now().Add(control.StartLimit)); err != nil {
		return got, spawnError(name, err)
	}
	line, err := bufio.NewReader(io.LimitReader(pipe, control.MaxLine)).ReadBytes('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return got, &exit.Error{Code: exit.Timeout, Doing: "try to start the daemon of", Object: name, Cause: fmt.Errorf("not done after %s", control.StartLimit),
			Next: "One of its devices does not answer, the source perhaps. Nothing was changed."}
	}
	if err == nil {
		err = json.Unmarshal(line, &got)
	}
	if err != nil {
		return got, spawnError(name, err)
	}
	return got, nil
}
