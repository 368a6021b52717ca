package control

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
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/definition"
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

// Limits of the control socket, in bytes of a line and time to send one. They and MaxConnections
// bound what any number of clients takes from the daemon: further ones wait in the kernel's queue,
// without a descriptor here.
const (
	maxRequest     = 4 << 10
	MaxLine        = 1 << 20 // an answer
	LineLimit      = 5 * time.Second
	MaxConnections = 32
	// MaxChanges is how many of the connections may wait for a change, or for the end of the clone.
	// With those that wait for an event (MaxPolls) that leaves some for what is answered at once,
	// always.
	MaxChanges = 16
)

// The verbs of the control socket.
const (
	VerbStatus  = "status"
	VerbMessage = "message"
	VerbSet     = "set"
	VerbEvents  = "events"
	VerbPause   = "pause"
	VerbResume  = "resume"
	VerbStop    = "stop"
	VerbLeave   = "leave"
	VerbStay    = "stay"
	VerbFinish  = "finish"
	// VerbFinishable asks whether a finish would be refused.
	VerbFinishable = "finishable"
)

// Request is what a command asks its daemon.
type Request struct {
	Verb    string              `json:"verb"`
	Message *definition.Message `json:"message,omitempty"`
	Change  *definition.Change  `json:"change,omitempty"`
	// After is the sequence number behind which events are asked for; without one
	// only the last number is told.
	After *uint64 `json:"after,omitempty"`
	// Keep is of a finish: the metadata stays.
	Keep bool `json:"keep,omitempty"`
	// Force is of a stop: the device is taken from its users.
	Force bool `json:"force,omitempty"`
	// WaitMS is how long a stop or finish may wait for the device to be closed, a leave for what
	// is at work, or events for the next one, in milliseconds.
	WaitMS int64 `json:"wait_ms,omitempty"`
	// LimitMS is within how many milliseconds of its arrival the daemon must begin to carry the
	// request out; later it is dropped. 0 is no limit: the request of an earlier release's client.
	LimitMS int64 `json:"limit_ms,omitempty"`
}

// maxWait is the longest that can be told in nanoseconds, in milliseconds.
const maxWait = int64(math.MaxInt64 / time.Millisecond)

// ends says that the daemon ends by it.
func (r *Request) ends() bool {
	return r.Verb == VerbStop || r.Verb == VerbLeave || r.Verb == VerbFinish
}

// changes says that something is otherwise after it.
func (r *Request) changes() bool {
	return slices.Contains([]string{VerbMessage, VerbSet, VerbPause, VerbResume, VerbStay}, r.Verb)
}

// check refuses what no command of this version sends: a request is carried out whole or not at
// all.
func (r *Request) check() error {
	switch {
	case (r.Message != nil) != (r.Verb == VerbMessage):
		return errors.New("a message goes with the verb message")
	case (r.Change != nil) != (r.Verb == VerbSet):
		return errors.New("a change goes with the verb set")
	case r.After != nil && r.Verb != VerbEvents:
		return errors.New("after goes with the verb events")
	case r.Keep && r.Verb != VerbFinish:
		return errors.New("keep goes with the verb finish")
	case r.Force && r.Verb != VerbStop:
		return errors.New("force goes with the verb stop")
	case r.WaitMS != 0 && !slices.Contains([]string{VerbEvents, VerbStop, VerbLeave, VerbFinish, VerbFinishable}, r.Verb):
		return errors.New("nothing is to be waited for")
	case r.WaitMS < 0 || r.WaitMS > maxWait:
		return fmt.Errorf("wait of %d ms", r.WaitMS)
	case r.LimitMS < 0 || r.LimitMS > maxWait:
		return fmt.Errorf("limit of %d ms", r.LimitMS)
	case r.Message != nil:
		return r.Message.Check()
	case r.Change != nil:
		return r.Change.Check()
	}
	return nil
}

// Answer is the daemon's: an error, or a status or events where they were asked
// for.
type Answer struct {
	Error  *WireError `json:"error,omitempty"`
	Status *Status    `json:"status,omitempty"`
	Events []Event    `json:"events,omitempty"`
	Last   uint64     `json:"last,omitempty"` // sequence number of the last event
	// Warnings are of an end that went well: what the user should know all the same.
	Warnings []string `json:"warnings,omitempty"`
	// Sent is closed when the answer is on its way; the connection then stays
	// open until the process ends, which is how a command sees that end.
	Sent chan struct{} `json:"-"`
}

// WireError is an error as it travels, and as `-o json` prints it.
type WireError struct {
	Code   int    `json:"code"`
	Doing  string `json:"doing,omitempty"`
	Object string `json:"object,omitempty"`
	Cause  string `json:"cause,omitempty"`
	Next   string `json:"next,omitempty"`
}

// ToWire keeps the parts of an error that has them, and all of its text.
func ToWire(err error) *WireError {
	if err == nil {
		return nil
	}
	if e, ok := err.(*exit.Error); ok {
		w := &WireError{Code: e.Code, Doing: e.Doing, Object: e.Object, Next: e.Next}
		if e.Cause != nil {
			w.Cause = e.Cause.Error()
		}
		return w
	}
	return &WireError{Code: exit.Code(err), Doing: err.Error(), Next: exit.Next(err)}
}

func (w *WireError) Err() error {
	if w == nil {
		return nil
	}
	e := &exit.Error{Code: w.Code, Doing: w.Doing, Object: w.Object, Next: w.Next}
	if w.Cause != "" {
		e.Cause = errors.New(w.Cause)
	}
	return e
}

// Server answers on a control socket.
type Server struct {
	Listener *net.UnixListener
	Log      zerolog.Logger
	Answer   func(context.Context, Request) Answer
	Limit    time.Duration // for a line
	slots    chan struct{}
	serving  sync.WaitGroup
	last     net.Conn // kept open to the end of the process
}

// Listen makes the socket. The caller holds the lock of the name, so a socket
// that is there is that of a dead daemon.
func Listen(path string, log zerolog.Logger, answer func(context.Context, Request) Answer) (*Server, error) {
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
	return &Server{Listener: l, Log: log, Answer: answer, Limit: LineLimit, slots: make(chan struct{}, MaxConnections)}, nil
}

func socketError(doing, path string, err error) error {
	code := exit.Other
	if errors.Is(err, fs.ErrPermission) {
		code = exit.Denied
	}
	return &exit.Error{Code: code, Doing: doing + " control socket", Object: path, Cause: err}
}

// Serve accepts until close. A burst beyond MaxConnections waits in the
// kernel's queue.
func (s *Server) Serve() {
	for {
		s.slots <- struct{}{}
		conn, err := s.Listener.AcceptUnix()
		if err != nil {
			<-s.slots
			if errors.Is(err, net.ErrClosed) {
				return
			}
			s.Log.Error().Err(err).Msg("accept control connection")
			time.Sleep(100 * time.Millisecond) // out of descriptors: do not spin
			continue
		}
		s.serving.Go(guard.Wrap("control", func() {
			defer func() { <-s.slots }()
			s.handle(conn)
		}))
	}
}

// Close removes the socket and waits for the answers under way.
func (s *Server) Close() error {
	err := s.Listener.Close()
	s.serving.Wait()
	return err
}

// handle serves one connection. Whoever is not allowed is told so before anything is read, so that
// he can keep nobody waiting.
func (s *Server) handle(conn *net.UnixConn) {
	err := permitted(conn)
	if err == nil {
		s.Converse(conn)
		return
	}
	s.send(conn, Answer{Error: ToWire(err)})
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

// Converse is one request and its answer, which is an error also for what is no request.
func (s *Server) Converse(conn net.Conn) {
	var req Request
	err := readLine(conn, time.Now().Add(s.Limit), maxRequest, &req)
	if err == nil {
		err = req.check()
	}
	var ans Answer
	if err != nil {
		ans.Error = ToWire(&exit.Error{Code: exit.Usage, Doing: "read control request", Cause: err})
	} else {
		ctx, release := withClient(conn, &req)
		ans = s.Answer(ctx, req)
		release()
	}
	s.send(conn, ans)
	if ans.Sent != nil && ans.Error == nil {
		s.last = conn
		close(ans.Sent)
		return
	}
	conn.Close()
}

func (s *Server) send(conn net.Conn, ans Answer) {
	if err := WriteLine(conn, ans, s.Limit); err != nil {
		s.Log.Debug().Err(err).Msg("send control answer")
	}
}

// readLine reads a request: one line of JSON, of at most max bytes. Nothing may follow the value on
// it, and fields that are not known are an error: another version's request is not half understood.
func readLine(conn net.Conn, deadline time.Time, max int, v any) error {
	line, err := receive(conn, deadline, max)
	if err != nil {
		return err
	}
	return DecodeKnown(line, v)
}

// ReadAnswer reads a daemon's answer. What is not known in it is left out: the daemon may be newer
// than this program, and have more to say.
func ReadAnswer(conn net.Conn, deadline time.Time, ans *Answer) error {
	line, err := receive(conn, deadline, MaxLine)
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

func WriteLine(conn net.Conn, v any, limit time.Duration) error {
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
