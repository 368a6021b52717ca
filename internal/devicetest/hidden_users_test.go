//go:build device

package devicetest

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Users of the block device that no descriptor in /proc tells of. Each begins to use the device and
// returns how to stop.
var hiddenUsers = map[string]func(m *harness.Machine, path string) (release func()){
	"a target of the kernel": func(m *harness.Machine, path string) func() {
		m.MustRun("modprobe", "nvmet")
		subsystem := "/sys/kernel/config/nvmet/subsystems/hidden"
		namespace := subsystem + "/namespaces/1"
		m.MustRun("mkdir", subsystem)
		m.MustRun("mkdir", namespace)
		m.WriteFile(namespace+"/device_path", path)
		m.WriteFile(namespace+"/enable", "1")
		return func() {
			m.WriteFile(namespace+"/enable", "0")
			m.MustRun("rmdir", namespace, subsystem)
		}
	},
	"a descriptor in a socket": func(m *harness.Machine, path string) func() {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			m.Fatal(err)
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(fd), nil, 0), unix.Close(fd))
		}
		if err != nil {
			m.Fatal(err)
		}
		return func() { unix.Close(pair[0]); unix.Close(pair[1]) }
	},
	"a mapping": func(m *harness.Machine, path string) func() {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			m.Fatal(err)
		}
		mapped, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			m.Fatal(err)
		}
		return func() { _ = unix.Munmap(mapped) }
	},
	"a mount that is nowhere": func(m *harness.Machine, path string) func() {
		place := m.TempDir()
		m.MustRun("mount", "-o", "ro,noload", path, place)
		tree, err := unix.OpenTree(unix.AT_FDCWD, place, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			m.Fatal(err)
		}
		m.MustRun("umount", place)
		return func() { unix.Close(tree) }
	},
}

// TestHiddenUsers: no device is taken from whoever uses it without a descriptor, its daemon alive
// or dead; with --force it is.
func TestHiddenUsers(t *testing.T) {
	runs.On(t, "6.12", "7.3", runs.Sampled)
	c, _ := smallClone(t, "--no-hydration")
	m := c.M
	refused := func(what string, commands ...[]string) {
		t.Helper()
		release := hiddenUsers[what](m, c.Path)
		for _, args := range commands {
			t.Log(what, args)
			m.ExpectFailure(m.Try(harness.Command, args...), exit.Busy)
		}
		if s := c.Status(); s.Device != c.Path {
			t.Errorf("%s: status %+v", what, s)
		}
		if _, err := os.Stat(c.Path); err != nil {
			t.Fatalf("%s: the device is gone: %v", what, err)
		}
		release()
	}
	for what := range hiddenUsers {
		refused(what, []string{"del", c.Name})
	}
	c.End(syscall.SIGKILL)
	for _, what := range []string{"a descriptor in a socket", "a mount that is nowhere"} {
		if what == "a mount that is nowhere" { // it cannot be mounted while nobody serves
			c.Recover()
			release := hiddenUsers[what](m, c.Path)
			c.End(syscall.SIGKILL)
			m.ExpectFailure(m.Try(harness.Command, "del", c.Name), exit.Busy)
			c.Recover()
			release()
			continue
		}
		refused(what, []string{"del", c.Name}, []string{"prune"})
	}
	for _, alive := range []bool{true, false} {
		if !alive {
			c.Add()
			c.End(syscall.SIGKILL)
		}
		release := hiddenUsers["a descriptor in a socket"](m, c.Path)
		o := m.Try(harness.Command, "del", c.Name, "--force")
		release()
		m.Must(o, harness.Command, "del", "--force")
		c.Path = ""
	}

	c.Add()
	c.Del() // nobody is left, and none is made up
	if log, err := os.Stat(filepath.Join(harness.RunDir, c.Name+".log")); err == nil {
		t.Errorf("left: %s", log.Name())
	}
}
