//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A daemon keeps no mount alive: it runs in the mount namespace of process 1, wherever it was
// started.

// apart is a command in a mount namespace of its own, whose mounts nobody else sees change.
func apart(words ...string) []string {
	return append([]string{"--mount", "--propagation", "private", harness.Command}, words...)
}

// addApart is add in a mount namespace of its own.
func addApart(c *harness.Clone) {
	c.M.Helper()
	c.Path = harness.Opened(c.M.MustRun("unshare", apart(append([]string{"add", c.Name}, c.Args...)...)...))
	checkPlace(c)
}

// checkPlace fails the test unless the daemon is where process 1 is.
func checkPlace(c *harness.Clone) {
	c.M.Helper()
	host, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil {
		c.M.Fatal(err)
	}
	if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", c.Status().PID)); got != host {
		c.M.Errorf("the daemon is in %s (%v), process 1 in %s", got, err, host)
	}
}

// TestMountNamespace: a clone is added where another one's file system is mounted, in a mount
// namespace of its own. That file system can be unmounted for good while the daemon lives, and so
// can the clone's own; the live map is where the next daemon looks for it.
func TestMountNamespace(t *testing.T) {
	runs.On(t, "7.3")
	c, files := smallClone(t, "--no-hydration")
	files.Mount(c.Path)
	source, dest := c.M.NullBlk("src2", harness.NullOptions{MiB: 16}), c.M.NullBlk("dst2", harness.NullOptions{MiB: 16})
	other := c.M.NewClone(source, dest, c.M.Missing("meta2"), "--no-hydration")
	other.Name = "other"
	addApart(other)
	files.Unmount()
	c.Del()

	maps, _ := filepath.Glob(harness.LiveMaps + "/*.map")
	if len(maps) != 1 {
		t.Errorf("live maps for process 1: %v", maps)
	}
	c.M.MustRun("mkfs.ext4", "-q", other.Path)
	dir := filepath.Join(c.M.Dir, "other")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.M.MustRun("mount", other.Path, dir)
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	other.End(syscall.SIGKILL)
	other.Recover()
	if got := c.M.ReadFile(filepath.Join(dir, "file")); got != "kept" {
		t.Errorf("the file holds %q", got)
	}
	c.M.MustRun("umount", dir)
	other.Del()
}

// TestMountNamespaceForeground: the same for a daemon that a service manager starts.
func TestMountNamespaceForeground(t *testing.T) {
	runs.On(t, "6.12", "7.3", runs.Sampled)
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	c := m.NewClone(source, dest, m.Missing("meta"), "--no-hydration")
	daemon := exec.Command("unshare", apart(append([]string{"add", c.Name, "--foreground"}, c.Args...)...)...)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	m.WaitFor(harness.CommandLimit(), "the clone", func() error {
		if o := m.Try(harness.Command, "table", c.Name); o.Code != 0 {
			return errors.New(o.Stderr)
		}
		return nil
	})
	c.Path = c.Status().Device
	pid := c.Status().PID
	checkPlace(c)
	if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); dir != "/" {
		t.Errorf("the daemon works in %q, %v", dir, err)
	}
	if name := strings.TrimSpace(m.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))); name != harness.Command {
		t.Errorf("the daemon is called %q", name)
	}
	c.Del()
	if err := daemon.Wait(); err != nil {
		t.Errorf("the daemon has ended with %v", err)
	}
}

// TestPathElsewhere: what is a file in the command's mount namespace only is refused, and nothing
// is left.
func TestPathElsewhere(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.File("dst", 16*harness.MiB)
	args := strings.Join(append([]string{harness.Command, "add", "test"}, harness.AddArgs(source, dest, m.Missing("meta"))...), " ")
	hidden := "mount -t tmpfs tmpfs " + m.Dir + " && truncate -s 16M " + dest.Path + " && exec " + args
	m.ExpectFailure(m.Try("unshare", "--mount", "--propagation", "private", "bash", "-c", hidden), exit.Dest, "mount namespace", dest.Path)
}
