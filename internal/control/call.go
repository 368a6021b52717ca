package control

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// Ask sends a request to the daemon of a clone and gives the status that
// answers it.
func (d Dir) Ask(name string, req Request, limit time.Duration) (*Status, error) {
	ans, err := d.Call(name, req, limit)
	return ans.Status, err
}

// Call sends a request to the daemon of a clone and waits at most limit for the
// answer. Exit codes: 3 if there is no such clone, 13 if its daemon is dead or
// silent, else the daemon's own.
func (d Dir) Call(name string, req Request, limit time.Duration) (Answer, error) {
	req = req.limited(limit)
	ans, err := d.exchange(name, req, limit)
	if plain, older := req.plain(ans.Error); older && err == nil {
		ans, err = d.exchange(name, plain, limit)
	}
	if err != nil {
		return Answer{}, err
	}
	return ans, ans.Error.Err()
}

// exchange is one request and its answer, over a connection of its own.
func (d Dir) exchange(name string, req Request, limit time.Duration) (ans Answer, err error) {
	path := d.SocketPath(name)
	conn, err := net.DialTimeout("unix", path, LineLimit)
	if err != nil {
		return ans, d.noDaemon(name, err)
	}
	defer conn.Close()
	err = WriteLine(conn, req, LineLimit)
	if err == nil {
		err = ReadAnswer(conn, time.Now().Add(limit), &ans)
	}
	if err == nil && req.ends() && ans.Error == nil {
		_, err = io.Copy(io.Discard, conn) // until the process is gone, or the deadline
	}
	if hungUp(err) && d.AwaitEnd(name, DyingLimit) {
		return Answer{}, d.noDaemon(name, syscall.ECONNREFUSED)
	}
	if err != nil {
		return Answer{}, &exit.Error{Code: exit.NoAnswer, Doing: req.Verb + " clone", Object: name, Cause: fmt.Errorf("its daemon does not answer: %w", err),
			Next: "See " + d.LogPath(name) + "."}
	}
	return ans, nil
}

// hungUp says whether the other side of a connection has closed it. A daemon that was killed takes
// requests until the kernel has taken it down.
func hungUp(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// noDaemon says why nobody answers on the socket.
func (d Dir) noDaemon(name string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return d.Fail("ask the daemon of", name, err)
	}
	if _, loadErr := d.Load(name); loadErr != nil {
		return loadErr
	}
	e := &exit.Error{Code: exit.NoAnswer, Doing: "ask the daemon of", Object: name, Cause: err, Next: "See " + d.LogPath(name) + "."}
	gone := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
	switch {
	case gone && d.Alive(name):
		e.Cause = errors.New("its daemon is just coming up, or was killed and waits for its last requests to end")
		e.Next = "Try again; `ublk-clone recover " + name + "` waits for either. See " + d.LogPath(name) + "."
	case gone:
		e.Cause = errors.New("its daemon is dead")
		e.Next = "`ublk-clone recover " + name + "` brings it back; " + d.LogPath(name) + " says how it ended."
	}
	return e
}
