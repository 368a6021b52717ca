//go:build service

package servicetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
)

// Limits of what a test waits for: they find what stands still, on a machine that may be busy.
const (
	waitInterval  = 200 * time.Millisecond
	commandLimit  = 3 * time.Minute
	bootLimit     = 8 * time.Minute
	shutdownLimit = 5 * time.Minute
	answerLimit   = time.Minute // for the agent to answer after the command's own limit
)

// shownLines is how much of the console and of the journal a failed test shows.
const shownLines = 60

// options of a guest; what is zero is the default of scripts/service-vm.
type options struct {
	disks  map[string]int64 // bytes, by serial number
	memory string
	cpus   string
	append string // to the kernel's command line
}

// guest is a machine with systemd, for one test.
type guest struct {
	*testing.T
	options
	dir string

	vm   *boot // nil: off
	conn net.Conn

	mu      sync.Mutex
	last    int
	waiting map[int]chan Reply // by request; closed when the guest is gone
	gone    bool
}

// boot is a run of scripts/service-vm.
type boot struct {
	process *os.Process
	output  bytes.Buffer
	ended   chan struct{}
	err     error // once ended
}

// newGuest makes a guest's disks, and sees to it that nothing of it is left.
func newGuest(t *testing.T, o options) *guest {
	t.Helper()
	dir, err := os.MkdirTemp("", "ublk-clone-service.") // a short name: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{T: t, options: o, dir: dir}
	t.Cleanup(g.cleanup)
	if err := os.Mkdir(g.share(), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, size := range o.disks {
		g.makeDisk(name, size)
	}
	return g
}

// share is the host's path of the guest's /share.
func (g *guest) share() string { return filepath.Join(g.dir, "share") }

// disk is the host's path of a disk.
func (g *guest) disk(name string) string { return filepath.Join(g.dir, name+".disk") }

// makeDisk makes a disk that the next boot has: zeros.
func (g *guest) makeDisk(name string, size int64) {
	g.Helper()
	f, err := os.Create(g.disk(name))
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		g.Fatal(err)
	}
}

// boot starts the guest and waits until systemd has started all that it starts at boot, or has
// failed to.
func (g *guest) boot() {
	g.Helper()
	from := time.Now()
	g.powerOn()
	state := strings.TrimSpace(g.tryFor(bootLimit, "systemctl", "is-system-running", "--wait").stdout)
	g.Logf("booted %s in %v: %s", strings.TrimSpace(g.run("uname", "-r")), time.Since(from).Round(time.Second), state)
	if state != "running" {
		g.Logf("units that failed:\n%s", g.try("systemctl", "--failed", "--no-legend", "--plain").stdout)
	}
}

// powerOn starts the guest and waits for its agent, which is there before file systems are: for
// boots that fail.
func (g *guest) powerOn() {
	g.Helper()
	if g.vm != nil {
		g.Fatal("the guest is on already")
	}
	g.vm = g.startVM()
	g.mu.Lock()
	g.waiting, g.gone = map[int]chan Reply{}, false
	g.mu.Unlock()
	g.connect()
}

// startVM runs scripts/service-vm, on a thread that lasts as long: the script ends with its
// parent's thread.
func (g *guest) startVM() *boot {
	g.Helper()
	cmd := exec.Command("../../scripts/service-vm", "boot", g.dir)
	b := &boot{ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &b.output, &b.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Env = os.Environ()
	for name, value := range map[string]string{"MEM": g.memory, "SMP": g.cpus, "APPEND": g.append} {
		if value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			b.err = cmd.Wait()
			close(b.ended)
		}
	}()
	if err := <-started; err != nil {
		g.Fatal(err)
	}
	b.process = cmd.Process
	return b
}

// connect waits for the agent; the first socket may be that of a guest that died before its init
// ran.
func (g *guest) connect() {
	g.Helper()
	deadline := time.Now().Add(bootLimit)
	for {
		conn, err := net.Dial("unix", filepath.Join(g.dir, "agent.sock"))
		if err == nil {
			in := json.NewDecoder(conn)
			var hello Reply
			_ = conn.SetReadDeadline(deadline)
			if err = in.Decode(&hello); err == nil {
				_ = conn.SetReadDeadline(time.Time{})
				g.conn = conn
				go g.listen(in)
				return
			}
			conn.Close()
		}
		select {
		case <-g.vm.ended:
			g.Fatalf("the guest ended before its agent was there: %v\n%s", g.vm.err, g.vm.output.String())
		case <-time.After(waitInterval):
		}
		if time.Now().After(deadline) {
			g.Fatalf("the guest's agent is not there after %v: %v", bootLimit, err)
		}
	}
}

// listen hands out replies until the guest is gone.
func (g *guest) listen(in *json.Decoder) {
	for {
		var r Reply
		err := in.Decode(&r)
		g.mu.Lock()
		if err != nil {
			for c := range maps.Values(g.waiting) {
				close(c)
			}
			g.waiting, g.gone = nil, true
			g.mu.Unlock()
			return
		}
		if c := g.waiting[r.ID]; c != nil {
			c <- r // it has room for one
			delete(g.waiting, r.ID)
		}
		g.mu.Unlock()
	}
}

// outcome of a command.
type outcome struct {
	code           int // exit status; -1 = killed, 124 = took longer than its limit
	stdout, stderr string
	took           time.Duration // by the guest's clock
}

// job is a command that runs in the guest beside the test.
type job struct {
	g     *guest
	text  string
	limit time.Duration
	reply chan Reply
}

// start begins a command, of at most limit. It ends with the guest; what is to be killed in order
// by a shutdown, and what must not, is a unit of its own (systemd-run).
func (g *guest) start(limit time.Duration, name string, args ...string) *job {
	g.Helper()
	return g.startWith(nil, limit, name, args...)
}

// startWith is start with bytes for the standard input.
func (g *guest) startWith(stdin []byte, limit time.Duration, name string, args ...string) *job {
	g.Helper()
	j := &job{g: g, text: strings.Join(append([]string{name}, args...), " "), limit: limit, reply: make(chan Reply, 1)}
	bounded := append([]string{"timeout", "-k", "5", fmt.Sprintf("%.0f", limit.Seconds()), name}, args...)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.vm == nil || g.gone {
		g.Fatalf("%s: the guest is off", j.text)
	}
	g.last++
	g.waiting[g.last] = j.reply
	if err := json.NewEncoder(g.conn).Encode(Request{ID: g.last, Args: bounded, Stdin: stdin}); err != nil {
		g.Fatalf("%s: %v", j.text, err)
	}
	return j
}

// wait is for the job's end.
func (j *job) wait() outcome {
	j.g.Helper()
	select {
	case r, alive := <-j.reply:
		if !alive {
			j.g.Fatalf("%s: the guest ended meanwhile", j.text)
		}
		if r.Error != "" {
			j.g.Fatalf("%s: %s", j.text, r.Error)
		}
		return outcome{code: r.Code, stdout: string(r.Stdout), stderr: string(r.Stderr), took: r.Took}
	case <-time.After(j.limit + answerLimit):
		j.g.Fatalf("%s: no answer after %v: the guest hangs", j.text, j.limit+answerLimit)
		panic("unreachable")
	}
}

// must waits for a job that must succeed, and returns what it printed.
func (j *job) must() string {
	j.g.Helper()
	o := j.wait()
	if o.code != 0 {
		j.g.Fatalf("%s: exit status %d after %v\n%s%s", j.text, o.code, o.took.Round(time.Millisecond), o.stdout, o.stderr)
	}
	return o.stdout
}

// try runs a command that may fail.
func (g *guest) try(name string, args ...string) outcome {
	g.Helper()
	return g.tryFor(commandLimit, name, args...)
}

// tryFor is try with another limit.
func (g *guest) tryFor(limit time.Duration, name string, args ...string) outcome {
	g.Helper()
	return g.start(limit, name, args...).wait()
}

// run runs a command that must succeed, and returns what it printed.
func (g *guest) run(name string, args ...string) string {
	g.Helper()
	return g.start(commandLimit, name, args...).must()
}

// sh runs a script of the shell whose every command must succeed: one a line, as the shell lets any
// but the last command of an && list fail.
func (g *guest) sh(script string) string {
	g.Helper()
	return g.run("bash", "-euo", "pipefail", "-c", script)
}

// write writes a file in the guest, and the directories that it is in.
func (g *guest) write(path, text string) {
	g.Helper()
	g.startWith([]byte(text), commandLimit, "install", "-D", "-m", "644", "/dev/stdin", path).must()
}

// read reads a file in the guest.
func (g *guest) read(path string) string {
	g.Helper()
	return g.run("cat", path)
}

// waitFor looks until check is content, at most for limit.
func (g *guest) waitFor(limit time.Duration, what string, check func() error) {
	g.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			g.Fatalf("waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(waitInterval)
	}
}

// reboot reboots in order, and waits as boot does.
func (g *guest) reboot() {
	g.Helper()
	g.shutdown("reboot")
	g.boot()
}

// shutdown has systemd reboot or power off; the guest is off afterwards.
func (g *guest) shutdown(verb string) {
	g.Helper()
	from := time.Now()
	g.start(commandLimit, "systemctl", verb)
	select {
	case <-g.vm.ended:
	case <-time.After(shutdownLimit):
		g.try("bash", "-c", "echo 8 >/proc/sysrq-trigger; echo w >/proc/sysrq-trigger; sleep 1") // to the console: who waits, for what
		g.Fatalf("systemctl %s: the guest is still there after %v", verb, shutdownLimit)
	}
	g.Logf("systemctl %s took %v", verb, time.Since(from).Round(time.Second))
	if g.vm.err != nil {
		g.Errorf("systemctl %s: %v\n%s", verb, g.vm.err, g.vm.output.String())
	}
	g.off()
}

// powerCut ends the guest at once. What was not written to a disk is lost.
func (g *guest) powerCut() {
	g.Helper()
	if err := g.vm.process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		g.Fatal(err)
	}
	<-g.vm.ended
	g.off()
}

// off forgets the guest that has ended.
func (g *guest) off() {
	if g.conn != nil {
		g.conn.Close()
	}
	g.vm, g.conn = nil, nil
}

// cleanup ends the guest, keeps its logs, and fails the test if the kernel has complained.
func (g *guest) cleanup() {
	if g.vm != nil {
		g.powerCut()
	}
	logs, err := g.keepLogs()
	if err != nil {
		g.Errorf("keep the guest's logs: %v", err)
	}
	for _, log := range logs {
		g.checkLog(log)
	}
	if err := os.RemoveAll(g.dir); err != nil {
		g.Error(err)
	}
}

// keepLogs copies consoles and journals to build/results and returns their paths, in order of the
// boots.
func (g *guest) keepLogs() ([]string, error) {
	results, err := filepath.Abs("../../build/results")
	if err != nil {
		return nil, err
	}
	directory := filepath.Join(results, "service-"+os.Getenv("KERNEL"), strings.ReplaceAll(g.Name(), "/", "-"))
	if err := errors.Join(os.RemoveAll(directory), os.MkdirAll(directory, 0o755)); err != nil {
		return nil, err
	}
	var logs []string
	for n := 1; ; n++ {
		for _, kind := range []string{"console", "journal"} {
			name := fmt.Sprintf("boot-%d.%s", n, kind)
			text, err := os.ReadFile(filepath.Join(g.dir, name))
			if errors.Is(err, fs.ErrNotExist) {
				return logs, nil
			}
			if err != nil {
				return logs, err
			}
			logs = append(logs, filepath.Join(directory, name))
			if err := os.WriteFile(logs[len(logs)-1], text, 0o644); err != nil {
				return logs, err
			}
		}
	}
}

// checkLog finds the kernel's complaints on a console, and shows the end of any log of a test that
// failed.
func (g *guest) checkLog(path string) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, io.EOF) {
		g.Error(err)
	}
	lines := strings.Split(strings.ReplaceAll(string(text), "\r", ""), "\n")
	if strings.HasSuffix(path, ".console") {
		for _, line := range lines {
			if complains(line) {
				g.Errorf("%s: the kernel says: %s", filepath.Base(path), line)
			}
		}
	}
	if g.Failed() {
		lines = slices.CompactFunc(lines, func(a, b string) bool { return waits(a) && waits(b) })
		g.Logf("the end of %s:\n%s", path, strings.Join(lines[max(0, len(lines)-shownLines):], "\n"))
	}
}

// waits says whether the line is what systemd prints again and again while it waits for a job.
func waits(line string) bool {
	return strings.Contains(line, " job is running for ") || strings.Contains(line, " running (")
}

// complains says whether the line is a complaint of the kernel.
func complains(line string) bool {
	return slices.ContainsFunc(harness.Complaints, func(complaint string) bool {
		return strings.Contains(line, complaint)
	})
}
