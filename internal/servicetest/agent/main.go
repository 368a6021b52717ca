// Command agent runs commands in a guest for the tests on the host: as many at a time as are asked
// for. It ends with the guest. As "agent freeze THREAD" and "agent ask SOCKET..." it is one of
// these commands itself.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/servicetest"
)

// pipeWait is how long a daemon that a command left may keep the command's pipes.
const pipeWait = time.Second

func main() {
	err := do(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func do(args []string) error {
	switch {
	case len(args) == 0:
		return serve()
	case args[0] == "freeze" && len(args) == 2:
		return freeze(args[1])
	case args[0] == "ask":
		return ask(args[1:])
	}
	return fmt.Errorf("unknown command: %q", args)
}

// serve answers requests for as long as it can, and says why it cannot any more.
func serve() error {
	port, err := open()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	out := json.NewEncoder(port) // under mu
	reply := func(r servicetest.Reply) {
		mu.Lock()
		defer mu.Unlock()
		if err := out.Encode(r); err != nil {
			fmt.Fprintln(os.Stderr, "agent: answer the host:", err)
		}
	}
	reply(servicetest.Reply{})
	in := json.NewDecoder(port)
	for {
		var r servicetest.Request
		if err := in.Decode(&r); err != nil {
			return fmt.Errorf("read from the host: %w", err)
		}
		go func() { reply(run(r)) }()
	}
}

// open finds the port by its name: the links to it are udev's, which may not run yet.
func open() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err == nil && strings.TrimSpace(string(text)) == servicetest.Port {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("no virtio port is named %s", servicetest.Port)
}

// run runs one command to its end.
func run(r servicetest.Request) servicetest.Reply {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(r.Args[0], r.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(r.Stdin), &stdout, &stderr
	cmd.WaitDelay = pipeWait
	from := time.Now()
	err := cmd.Run()
	reply := servicetest.Reply{ID: r.ID, Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Took: time.Since(from)}
	var ended *exec.ExitError
	switch {
	case errors.As(err, &ended):
		reply.Code = ended.ExitCode()
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		reply.Error = err.Error()
	}
	return reply
}
