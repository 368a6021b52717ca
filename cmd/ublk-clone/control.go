package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// The control socket: a connection carries one request and one answer, each
// one line of JSON. Only root, and the user that the daemon runs as, is heard.
//
//	-> {"verb":"message","message":{"word":"hydration_threshold","regions":256}}
//	<- {"status":{...}}   or   {"error":{"code":5,"doing":"delete","object":"root","cause":"mounted on /","next":"..."}}

// Limits of the control socket, in bytes of a line and time to send one. They and maxConnections bound what
// any number of clients takes from the daemon: further ones wait in the kernel's queue, without a descriptor here.
const (
	maxRequest     = 4 << 10
	maxLine        = 1 << 20 // an answer
	lineLimit      = 5 * time.Second
	maxConnections = 32
	// maxChanges is how many of the connections may wait for a change, or for the end of the clone. With those that
	// wait for an event (maxPolls) that leaves some for what is answered at once, always.
	maxChanges = 16
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
	verbLeave   = "leave"
	verbStay    = "stay"
	verbFinish  = "finish"
	// verbFinishable asks whether a finish would be refused.
	verbFinishable = "finishable"
)

// request is what a command asks its daemon.
type request struct {
	Verb    string   `json:"verb"`
	Message *message `json:"message,omitempty"`
	Change  *change  `json:"change,omitempty"`
	// After is the sequence number behind which events are asked for; without one
	// only the last number is told.
	After *uint64 `json:"after,omitempty"`
	// Keep is of a finish: the metadata stay.
	Keep bool `json:"keep,omitempty"`
	// Force is of a stop: the device is taken from its users.
	Force bool `json:"force,omitempty"`
	// WaitMS is how long a stop or finish may wait for the device to be closed, a leave for what
	// is at work, or events for the next one, in milliseconds.
	WaitMS int64 `json:"wait_ms,omitempty"`
	// LimitMS is within how many milliseconds of its arrival the daemon must begin to carry the request out;
	// later it is dropped. 0 is no limit: the request of an earlier release's client.
	LimitMS int64 `json:"limit_ms,omitempty"`
}

// maxWait is the longest that can be told in nanoseconds, in milliseconds.
const maxWait = int64(math.MaxInt64 / time.Millisecond)

// ends says that the daemon ends by it.
func (r *request) ends() bool {
	return r.Verb == verbStop || r.Verb == verbLeave || r.Verb == verbFinish
}

// changes says that something is otherwise after it.
func (r *request) changes() bool {
	return slices.Contains([]string{verbMessage, verbSet, verbPause, verbResume, verbStay}, r.Verb)
}

// check refuses what no command of this version sends: a request is carried out whole or not at all.
func (r *request) check() error {
	switch {
	case (r.Message != nil) != (r.Verb == verbMessage):
		return errors.New("a message goes with the verb message")
	case (r.Change != nil) != (r.Verb == verbSet):
		return errors.New("a change goes with the verb set")
	case r.After != nil && r.Verb != verbEvents:
		return errors.New("after goes with the verb events")
	case r.Keep && r.Verb != verbFinish:
		return errors.New("keep goes with the verb finish")
	case r.Force && r.Verb != verbStop:
		return errors.New("force goes with the verb stop")
	case r.WaitMS != 0 && !slices.Contains([]string{verbEvents, verbStop, verbLeave, verbFinish, verbFinishable}, r.Verb):
		return errors.New("nothing is to be waited for")
	case r.WaitMS < 0 || r.WaitMS > maxWait:
		return fmt.Errorf("wait of %d ms", r.WaitMS)
	case r.LimitMS < 0 || r.LimitMS > maxWait:
		return fmt.Errorf("limit of %d ms", r.LimitMS)
	case r.Message != nil:
		return r.Message.check()
	case r.Change != nil:
		return r.Change.check()
	}
	return nil
}

// answer is the daemon's: an error, or a status or events where they were asked
// for.
type answer struct {
	Error  *wireError   `json:"error,omitempty"`
	Status *cloneStatus `json:"status,omitempty"`
	Events []event      `json:"events,omitempty"`
	Last   uint64       `json:"last,omitempty"` // sequence number of the last event
	// Warnings are of an end that went well: what the user should know all the same.
	Warnings []string `json:"warnings,omitempty"`
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
	limit    time.Duration // for a line
	slots    chan struct{}
	serving  sync.WaitGroup
	last     net.Conn // kept open to the end of the process
}

// listen makes the socket. The caller holds the lock of the name, so a socket
// that is there is that of a dead daemon.
func listen(path string, log zerolog.Logger, answer func(context.Context, request) answer) (*server, error) {
	if err := file.Remove(path); err != nil {
		return nil, socketError("replace", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, socketError("listen on", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, socketError("protect", path, errors.Join(err, l.Close()))
	}
	return &server{listener: l, log: log, answer: answer, limit: lineLimit, slots: make(chan struct{}, maxConnections)}, nil
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
		s.serving.Go(guard.Wrap("control", func() {
			defer func() { <-s.slots }()
			s.handle(conn)
		}))
	}
}

// close removes the socket and waits for the answers under way.
func (s *server) close() error {
	err := s.listener.Close()
	s.serving.Wait()
	return err
}

// handle serves one connection. Whoever is not allowed is told so before anything is read, so that he can
// keep nobody waiting.
func (s *server) handle(conn *net.UnixConn) {
	err := permitted(conn)
	if err == nil {
		s.converse(conn)
		return
	}
	s.send(conn, answer{Error: toWire(err)})
	conn.Close()
}

// permitted looks at who has connected: the socket's mode is only the first guard.
func permitted(conn *net.UnixConn) error {
	uid, err := sys.PeerUID(conn)
	if err == nil && uid != 0 && int(uid) != os.Geteuid() {
		err = &exit.Error{Code: exit.Denied, Doing: "use the control socket", Cause: fmt.Errorf("user id %d is not allowed", uid),
			Next: "Run it as root."}
	}
	return err
}

// converse is one request and its answer, which is an error also for what is no request.
func (s *server) converse(conn net.Conn) {
	var req request
	err := readLine(conn, time.Now().Add(s.limit), maxRequest, &req)
	if err == nil {
		err = req.check()
	}
	var ans answer
	if err != nil {
		ans.Error = toWire(&exit.Error{Code: exit.Usage, Doing: "read control request", Cause: err})
	} else {
		ctx, release := withClient(conn, &req)
		ans = s.answer(ctx, req)
		release()
	}
	s.send(conn, ans)
	if ans.sent != nil && ans.Error == nil {
		s.last = conn
		close(ans.sent)
		return
	}
	conn.Close()
}

func (s *server) send(conn net.Conn, ans answer) {
	if err := writeLine(conn, ans, s.limit); err != nil {
		s.log.Debug().Err(err).Msg("send control answer")
	}
}

// readLine reads a request: one line of JSON, of at most max bytes. Nothing may follow the value on it, and
// fields that are not known are an error: another version's request is not
// half understood.
func readLine(conn net.Conn, deadline time.Time, max int, v any) error {
	line, err := receive(conn, deadline, max)
	if err != nil {
		return err
	}
	return decodeKnown(line, v)
}

// readAnswer reads a daemon's answer. What is not known in it is left out: the daemon may be newer than this
// program, and have more to say.
func readAnswer(conn net.Conn, deadline time.Time, ans *answer) error {
	line, err := receive(conn, deadline, maxLine)
	if err != nil {
		return err
	}
	return json.Unmarshal(line, ans)
}

// receive reads one line, of at most max bytes.
func receive(conn net.Conn, deadline time.Time, max int) ([]byte, error) {
	if err := conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	line, err := bufio.NewReaderSize(io.LimitReader(conn, int64(max)), 4096).ReadBytes('\n')
	switch {
	case errors.Is(err, io.EOF) && len(line) >= max:
		return nil, fmt.Errorf("line longer than %d bytes", max)
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("connection closed after %d bytes of a line: %w", len(line), io.ErrUnexpectedEOF)
	}
	return line, err
}

func writeLine(conn net.Conn, v any, limit time.Duration) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := conn.SetWriteDeadline(time.Now().Add(limit)); err != nil {
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
func (d runDir) call(name string, req request, limit time.Duration) (answer, error) {
	req = req.limited(limit)
	ans, err := d.exchange(name, req, limit)
	if plain, older := req.plain(ans.Error); older && err == nil {
		ans, err = d.exchange(name, plain, limit)
	}
	if err != nil {
		return answer{}, err
	}
	return ans, ans.Error.err()
}

// exchange is one request and its answer, over a connection of its own.
func (d runDir) exchange(name string, req request, limit time.Duration) (ans answer, err error) {
	path := d.socket(name)
	conn, err := net.DialTimeout("unix", path, lineLimit)
	if err != nil {
		return ans, d.noDaemon(name, err)
	}
	defer conn.Close()
	err = writeLine(conn, req, lineLimit)
	if err == nil {
		err = readAnswer(conn, time.Now().Add(limit), &ans)
	}
	if err == nil && req.ends() && ans.Error == nil {
		_, err = io.Copy(io.Discard, conn) // until the process is gone, or the deadline
	}
	if hungUp(err) && d.awaitEnd(name, dyingLimit) {
		return answer{}, d.noDaemon(name, syscall.ECONNREFUSED)
	}
	if err != nil {
		return answer{}, &exit.Error{Code: exit.NoAnswer, Doing: req.Verb + " clone", Object: name, Cause: fmt.Errorf("its daemon does not answer: %w", err),
			Next: "See " + d.log(name) + "."}
	}
	return ans, nil
}

// hungUp says whether the other side of a connection has closed it. A daemon that was killed takes requests until the
// kernel has taken it down.
func hungUp(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
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
	switch {
	case gone && d.alive(name):
		e.Cause = errors.New("its daemon is just coming up, or was killed and waits for its last requests to end")
		e.Next = "Try again; `ublk-clone recover " + name + "` waits for either. See " + d.log(name) + "."
	case gone:
		e.Cause = errors.New("its daemon is dead")
		e.Next = "`ublk-clone recover " + name + "` brings it back; " + d.log(name) + " says how it ended."
	}
	return e
}
