//go:build device

package ublk

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A server in a process of its own, so that it can be killed. It is the test binary again, told by
// the environment what to do. Its disk is a file on a tmpfs that it maps, so that what it did
// outlives it and nothing is under way when it has ended.
//
// It says on standard output what it has reached ("device 3", "live", "left", or "error: ..."), and
// is told on standard input: hold (answer nothing), release, rest (Hold and Release), rest and
// leave, leave, count (how many requests it has got since: "count 7"), held (how many have come
// since it holds: "held 7").

const serverVariable = "UBLK_TEST_CHILD"

// restLimit is how long a rest may take.
const restLimit = 2 * time.Second

// serverConfig is what a server is to do.
type serverConfig struct {
	ID       int // device to recover, or AnyID: make one
	Queues   int
	Depth    int
	Disk     string
	Hold     bool   // from the start
	DieAt    string // step before which it kills itself
	NoTarget bool   // its last queue gets no target
}

const serverCookie = 0x5e7fe12

func (c serverConfig) options() Options {
	o := testOptions(c.Queues)
	o.Depth, o.Private, o.Recoverable, o.Fatal = c.Depth, serverCookie, true, nil
	if c.DieAt != "" {
		o.fail = func(step string) error {
			if step == c.DieAt {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
			return nil
		}
	}
	return o
}

// slowTarget holds all requests back until the next wake-up, so that some are always at work.
type slowTarget struct{ memoryTarget }

func (s *slowTarget) Request(tag uint16, d Desc) {
	s.m.mu.Lock()
	s.m.mu.requests = append(s.m.mu.requests, seen{s.q.Index(), d})
	if s.m.mu.hold {
		s.m.mu.held++
	}
	s.m.mu.Unlock()
	s.held = append(s.held, tag)
}

// target makes the target of a queue as the configuration wants it.
func (c serverConfig) target(m *memory, queues int) func(*Queue) Target {
	return func(q *Queue) Target {
		if c.NoTarget && q.Index() == queues-1 {
			return nil
		}
		m.target(q)
		return &slowTarget{memoryTarget{m: m, q: q}}
	}
}

// mapDisk maps the file as the disk of a memory.
func mapDisk(path string) (*memory, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	m := newMemory(0)
	m.disk, err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return m, err
}

// serverMain is the process.
func serverMain(config string) {
	var c serverConfig
	err := json.Unmarshal([]byte(config), &c)
	if err == nil {
		err = c.serve()
	}
	if err != nil {
		fmt.Printf("error: %v\n", err)
		os.Exit(1)
	}
}

func (c serverConfig) serve() error {
	ctl, err := OpenControl()
	if err != nil {
		return err
	}
	m, err := mapDisk(c.Disk)
	if err != nil {
		return err
	}
	m.mu.hold = c.Hold
	var d *Device
	if c.ID == AnyID {
		d, err = Create(ctl, c.options())
	} else {
		d, err = Recover(ctl, c.ID, c.options())
	}
	if err != nil {
		return err
	}
	fmt.Printf("device %d\n", d.Info().ID)
	if err := d.Start(c.target(m, d.Info().Queues)); err != nil {
		return err
	}
	fmt.Println("live")
	go m.tick()
	return m.obey(d)
}

// tick lets held requests go on, again and again.
func (m *memory) tick() {
	for ; ; time.Sleep(time.Millisecond) {
		m.mu.Lock()
		for _, q := range m.mu.queues {
			q.Loop().Wake()
		}
		m.mu.Unlock()
	}
}

// obey does what it is told until it has left, or its standard input ends.
func (m *memory) obey(d *Device) error {
	hold := func(on bool) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.mu.hold = on
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "hold":
			hold(true)
			fmt.Println("holding")
		case "release":
			hold(false)
		case "count":
			fmt.Printf("count %d\n", len(m.take()))
		case "held":
			m.mu.Lock()
			fmt.Printf("held %d\n", m.mu.held)
			m.mu.Unlock()
		case "rest": // for a moment
			if err := d.Hold(restLimit); err != nil {
				fmt.Println("not rested")
				continue
			}
			d.Release()
			fmt.Println("rested")
		case "rest and leave":
			if err := errors.Join(d.Hold(testLimit), d.Leave(testLimit)); err != nil {
				return err
			}
			fmt.Println("left")
			return nil
		case "leave":
			if err := d.Leave(testLimit); err != nil {
				return err
			}
			fmt.Println("left")
			return nil
		}
	}
	return nil
}

// server is such a process, as its parent has it.
type server struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
	id  int
}

// startServer starts a server and waits until its device is found.
func startServer(t *testing.T, c serverConfig) *server {
	t.Helper()
	config, err := json.Marshal(c)
	must(t, err)
	s := &server{t: t, cmd: exec.Command(os.Args[0])}
	s.cmd.Env = append(os.Environ(), serverVariable+"="+string(config))
	s.cmd.Stderr = os.Stderr
	s.in, err = s.cmd.StdinPipe()
	must(t, err)
	out, err := s.cmd.StdoutPipe()
	must(t, err)
	s.out = bufio.NewScanner(out)
	must(t, s.cmd.Start())
	t.Cleanup(s.kill)
	s.id, err = strconv.Atoi(strings.TrimPrefix(s.line(), "device "))
	if err != nil {
		t.Fatalf("server of device %d: %v", c.ID, err)
	}
	return s
}

// line is the next that the server says; empty when it has ended.
func (s *server) line() string {
	s.out.Scan()
	return s.out.Text()
}

// expect waits for a line.
func (s *server) expect(want string) {
	s.t.Helper()
	if got := s.line(); got != want {
		s.t.Fatalf("the server of device %d says %q, not %q", s.id, got, want)
	}
}

func (s *server) tell(what string) {
	s.t.Helper()
	_, err := fmt.Fprintln(s.in, what)
	must(s.t, err)
}

// held is how many requests have come to the server since it holds. The kernel's own count has
// those too that it has not been given yet.
func (s *server) held() (n int) {
	s.t.Helper()
	s.tell("held")
	_, err := fmt.Sscanf(s.line(), "held %d", &n)
	must(s.t, err)
	return n
}

// kill ends the server by SIGKILL, if it runs yet, and waits for that.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// killed waits for a server that kills itself.
func (s *server) killed() {
	s.t.Helper()
	said := s.line()
	_ = s.cmd.Wait()
	if got := s.cmd.ProcessState.String(); got != "signal: killed" {
		s.t.Fatalf("the server of device %d has said %q and ended with %q, want SIGKILL", s.id, said, got)
	}
}

// makeServer starts a server with a new device, which is removed at the end, whoever serves it
// then.
func makeServer(t *testing.T, queues, depth int) (*server, serverConfig) {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, 64*mib))
	c := serverConfig{ID: AnyID, Queues: queues, Depth: depth, Disk: disk}
	t.Cleanup(func() {
		if c.ID != AnyID {
			removeDevice(t, c.ID)
		}
	})
	s := startServer(t, c)
	c.ID = s.id
	s.expect("live")
	return s, c
}
