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

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A daemon keeps no mount alive: it runs in the mount namespace of process 1, wherever it was started.

// apart is a command in a mount namespace of its own, whose mounts nobody else sees change.
func apart(words ...string) []string {
	return append([]string{"--mount", "--propagation", "private", command}, words...)
}

// addApart is add in a mount namespace of its own.
func (c *clone) addApart() {
	c.m.Helper()
	c.path = strings.TrimSpace(c.m.run("unshare", apart(append([]string{"add", c.name}, c.args...)...)...))
	c.checkPlace()
}

// checkPlace fails the test unless the daemon is where process 1 is.
func (c *clone) checkPlace() {
	c.m.Helper()
	host, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil {
		c.m.Fatal(err)
	}
	if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", c.status().PID)); got != host {
		c.m.Errorf("the daemon is in %s (%v), process 1 in %s", got, err, host)
	}
}

// TestMountNamespace: a clone is added where another one's file system is mounted, in a mount namespace of its
// own. That file system can be unmounted for good while the daemon lives, and so can the clone's own; the live map
// is where the next daemon looks for it.
func TestMountNamespace(t *testing.T) {
	runs.On(t, "7.3")
	c, files := smallClone(t, "--no-hydration")
	files.mount(c.path)
	source, dest := c.m.nullBlk("src2", nullOptions{mib: 16}), c.m.nullBlk("dst2", nullOptions{mib: 16})
	other := c.m.newClone(source, dest, c.m.missing("meta2"), "--no-hydration")
	other.name = "other"
	other.addApart()
	files.unmount()
	c.del()

	maps, _ := filepath.Glob(liveMaps + "/*.map")
	if len(maps) != 1 {
		t.Errorf("live maps for process 1: %v", maps)
	}
	c.m.run("mkfs.ext4", "-q", other.path)
	folder := filepath.Join(c.m.dir, "other")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	c.m.run("mount", other.path, folder)
	if err := os.WriteFile(filepath.Join(folder, "file"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	other.end(syscall.SIGKILL)
	other.recover()
	if got := c.m.readFile(filepath.Join(folder, "file")); got != "kept" {
		t.Errorf("the file holds %q", got)
	}
	c.m.run("umount", folder)
	other.del()
}

// TestMountNamespaceForeground: the same for a daemon that a service manager starts.
func TestMountNamespaceForeground(t *testing.T) {
	runs.On(t, "6.12", "7.3")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	c := m.newClone(source, dest, m.missing("meta"), "--no-hydration")
	daemon := exec.Command("unshare", apart(append([]string{"add", c.name, "--foreground"}, c.args...)...)...)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	m.waitFor(commandLimit(), "the clone", func() error {
		if o := m.try(command, "table", c.name); o.code != 0 {
			return errors.New(o.stderr)
		}
		return nil
	})
	c.path = c.status().Device
	pid := c.status().PID
	c.checkPlace()
	if folder, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); folder != "/" {
		t.Errorf("the daemon works in %q, %v", folder, err)
	}
	if name := strings.TrimSpace(m.readFile(fmt.Sprintf("/proc/%d/comm", pid))); name != command {
		t.Errorf("the daemon is called %q", name)
	}
	c.del()
	if err := daemon.Wait(); err != nil {
		t.Errorf("the daemon has ended with %v", err)
	}
}

// TestPathElsewhere: what is a file in the command's mount namespace only is refused, and nothing is left.
func TestPathElsewhere(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.file("dst", 16*mib)
	args := strings.Join(append([]string{command, "add", "test"}, addArgs(source, dest, m.missing("meta"))...), " ")
	hidden := "mount -t tmpfs tmpfs " + m.dir + " && truncate -s 16M " + dest.path + " && exec " + args
	m.expectFailure(m.try("unshare", "--mount", "--propagation", "private", "bash", "-c", hidden), exit.Dest, "mount namespace", dest.path)
}
