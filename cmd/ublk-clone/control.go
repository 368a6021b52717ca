package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// The control socket: a connection carries one request and one answer, each
// one line of JSON. Only root, and the user that the daemon runs as, is heard.
//
//	-> {"verb":"message","message":{"word":"hydration_threshold","regions":256}}
//	<- {"status":{...}}   or   {"error":{"code":5,"doing":"delete","object":"root","cause":"mounted on /","next":"..."}}

// Limits of the control socket: a line either way, the time to send one, and
// how many connections are served at a time.
const (
	maxLine        = 1 << 20
	lineLimit      = 5 * time.Second
	maxConnections = 16
)

// The verbs of the control socket.
const (
	verbStatus  = "status"
	verbMessage = "message"
	verbSet     = "set"
	verbEvents  = "events"
	verbPause   = "pause"
	verbResume  = "resume"
	verbStop    = "stop"
)

// request is what a command asks its daemon.
type request struct {
	Verb    string   `json:"verb"`
	Message *message `json:"message,omitempty"`
	Change  *change  `json:"change,omitempty"`
	// After is the sequence number behind which events are asked for; without one
	// only the last number is told.
	After *uint64 `json:"after,omitempty"`
	// WaitMS is how long a stop may wait for the device to be closed, or events for
	// the next one, in milliseconds.
	WaitMS int64 `json:"wait_ms,omitempty"`
}

// answer is the daemon's: an error, or a status or events where they were asked
// for.
type answer struct {
	Error  *wireError   `json:"error,omitempty"`
	Status *cloneStatus `json:"status,omitempty"`
	Events []event      `json:"events,omitempty"`
	Last   uint64       `json:"last,omitempty"` // sequence number of the last event
	// sent is closed when the answer is on its way; the connection then stays
	// open until the process ends, which is how a command sees that end.
	sent chan struct{}
}

// wireError is an error as it travels, and as `-o json` prints it.
type wireError struct {
	Code   int    `json:"code"`
	Doing  string `json:"doing,omitempty"`
	Object string `json:"object,omitempty"`
	Cause  string `json:"cause,omitempty"`
	Next   string `json:"next,omitempty"`
}

// toWire keeps the parts of an error that has them, and all of its text.
func toWire(err error) *wireError {
	if err == nil {
		return nil
	}
	if e, ok := err.(*exit.Error); ok {
		w := &wireError{Code: e.Code, Doing: e.Doing, Object: e.Object, Next: e.Next}
		if e.Cause != nil {
			w.Cause = e.Cause.Error()
		}
		return w
	}
	return &wireError{Code: exit.Code(err), Doing: err.Error(), Next: exit.Next(err)}
}

func (w *wireError) err() error {
	if w == nil {
		return nil
	}
	e := &exit.Error{Code: w.Code, Doing: w.Doing, Object: w.Object, Next: w.Next}
	if w.Cause != "" {
		e.Cause = errors.New(w.Cause)
	}
	return e
}

// server answers on a control socket.
type server struct {
	listener *net.UnixListener
	log      zerolog.Logger
	answer   func(context.Context, request) answer
	slots    chan struct{}
	serving  sync.WaitGroup
	last     *net.UnixConn // kept open to the end of the process
}

// listen makes the socket. The caller holds the lock of the name, so a socket
// that is there is that of a dead daemon.
func listen(path string, log zerolog.Logger, answer func(context.Context, request) answer) (*server, error) {
	if err := removeIfThere(path); err != nil {
		return nil, socketError("replace", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, socketError("listen on", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, socketError("protect", path, errors.Join(err, l.Close()))
	}
	return &server{listener: l, log: log, answer: answer, slots: make(chan struct{}, maxConnections)}, nil
}

func socketError(doing, path string, err error) error {
	code := exit.Other
	if errors.Is(err, fs.ErrPermission) {
		code = exit.Denied
	}
	return &exit.Error{Code: code, Doing: doing + " control socket", Object: path, Cause: err}
}

// serve accepts until close. A burst beyond maxConnections waits in the
// kernel's queue.
func (s *server) serve() {
	for {
		s.slots <- struct{}{}
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			<-s.slots
			if errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Error().Err(err).Msg("accept control connection")
			time.Sleep(100 * time.Millisecond) // out of descriptors: do not spin
			continue
		}
		s.serving.Go(func() {
			defer func() { <-s.slots }()
			s.handle(conn)
		})
	}
}

// close removes the socket and waits for the answers under way.
func (s *server) close() error {
	err := s.listener.Close()
	s.serving.Wait()
	return err
}

// handle serves one connection. Whoever is not allowed, or sends no request, is
// told why.
func (s *server) handle(conn *net.UnixConn) {
	ans, err := s.exchange(conn)
	if err != nil {
		ans = answer{Error: toWire(err)}
	}
	if err := writeLine(conn, ans); err != nil {
		s.log.Debug().Err(err).Msg("send control answer")
	}
	if ans.sent != nil && ans.Error == nil {
		s.last = conn
		close(ans.sent)
		return
	}
	conn.Close()
}

func (s *server) exchange(conn *net.UnixConn) (answer, error) {
	uid, err := sys.PeerUID(conn)
	if err != nil {
		return answer{}, err
	}
	if uid != 0 && int(uid) != os.Geteuid() {
		return answer{}, &exit.Error{Code: exit.Denied, Doing: "use the control socket", Cause: fmt.Errorf("user id %d is not allowed", uid),
			Next: "Run it as root."}
	}
	var req request
	if err := readLine(conn, time.Now().Add(lineLimit), &req); err != nil {
		return answer{}, &exit.Error{Code: exit.Usage, Doing: "read control request", Cause: err}
	}
	return s.answer(context.Background(), req), nil
}

// readLine reads one line of JSON. Nothing may follow the value on it, and
// fields that are not known are an error: another version's request is not
// half understood.
func readLine(conn net.Conn, deadline time.Time, v any) error {
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	line, err := bufio.NewReaderSize(io.LimitReader(conn, maxLine), 4096).ReadBytes('\n')
	switch {
	case errors.Is(err, io.EOF) && len(line) >= maxLine:
		return fmt.Errorf("line longer than %d bytes", maxLine)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("connection closed after %d bytes of a line: %w", len(line), io.ErrUnexpectedEOF)
	case err != nil:
		return err
	}
	return decodeKnown(line, v)
}

func writeLine(conn net.Conn, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := conn.SetWriteDeadline(time.Now().Add(lineLimit)); err != nil {
		return err
	}
	_, err = conn.Write(append(b, '\n'))
	return err
}

// ask sends a request to the daemon of a clone and gives the status that
// answers it.
func (d runDir) ask(name string, req request, limit time.Duration) (*cloneStatus, error) {
	ans, err := d.call(name, req, limit)
	return ans.Status, err
}

// call sends a request to the daemon of a clone and waits at most limit for the
// answer. Exit codes: 3 if there is no such clone, 13 if its daemon is dead or
// silent, else the daemon's own.
func (d runDir) call(name string, req request, limit time.Duration) (ans answer, err error) {
	path := d.socket(name)
	conn, err := net.DialTimeout("unix", path, lineLimit)
	if err != nil {
		return ans, d.noDaemon(name, err)
	}
	defer conn.Close()
	err = writeLine(conn, req)
	if err == nil {
		err = readLine(conn, time.Now().Add(limit), &ans)
	}
	if err == nil && req.Verb == verbStop && ans.Error == nil {
		_, err = io.Copy(io.Discard, conn) // until the process is gone, or the deadline
	}
	if err != nil {
		return answer{}, &exit.Error{Code: exit.NoAnswer, Doing: req.Verb + " clone", Object: name, Cause: fmt.Errorf("its daemon does not answer: %w", err),
			Next: "See " + d.log(name) + "."}
	}
	return ans, ans.Error.err()
}

// noDaemon says why nobody answers on the socket.
func (d runDir) noDaemon(name string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return d.fail("ask the daemon of", name, err)
	}
	if _, loadErr := d.load(name); loadErr != nil {
		return loadErr
	}
	e := &exit.Error{Code: exit.NoAnswer, Doing: "ask the daemon of", Object: name, Cause: err, Next: "See " + d.log(name) + "."}
	gone := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
	if gone && !d.alive(name) {
		e.Cause = errors.New("its daemon is dead")
		e.Next = "`ublk-clone recover " + name + "` brings it back; " + d.log(name) + " says how it ended."
	}
	return e
}
