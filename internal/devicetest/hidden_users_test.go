//go:build device

package devicetest

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Users of the block device that no descriptor in /proc tells of. Each begins to use the device and returns how to stop.
var hiddenUsers = map[string]func(m *machine, path string) (release func()){
	"a target of the kernel": func(m *machine, path string) func() {
		m.run("modprobe", "nvmet")
		subsystem := "/sys/kernel/config/nvmet/subsystems/hidden"
		namespace := subsystem + "/namespaces/1"
		m.run("mkdir", subsystem)
		m.run("mkdir", namespace)
		m.writeFile(namespace+"/device_path", path)
		m.writeFile(namespace+"/enable", "1")
		return func() {
			m.writeFile(namespace+"/enable", "0")
			m.run("rmdir", namespace, subsystem)
		}
	},
	"a descriptor in a socket": func(m *machine, path string) func() {
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
	"a mapping": func(m *machine, path string) func() {
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
	"a mount that is nowhere": func(m *machine, path string) func() {
		place := m.TempDir()
		m.run("mount", "-o", "ro,noload", path, place)
		tree, err := unix.OpenTree(unix.AT_FDCWD, place, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			m.Fatal(err)
		}
		m.run("umount", place)
		return func() { unix.Close(tree) }
	},
}

// TestHiddenUsers: no device is taken from whoever uses it without a descriptor, its daemon alive or dead; with
// --force it is.
func TestHiddenUsers(t *testing.T) {
	runs.On(t, "6.12", "7.3")
	c, _ := smallClone(t, "--no-hydration")
	m := c.m
	refused := func(what string, commands ...[]string) {
		t.Helper()
		release := hiddenUsers[what](m, c.path)
		for _, args := range commands {
			t.Log(what, args)
			m.expectFailure(m.try(command, args...), exit.Busy)
		}
		if s := c.status(); s.Device != c.path {
			t.Errorf("%s: status %+v", what, s)
		}
		if _, err := os.Stat(c.path); err != nil {
			t.Fatalf("%s: the device is gone: %v", what, err)
		}
		release()
	}
	for what := range hiddenUsers {
		refused(what, []string{"del", c.name})
	}
	c.end(syscall.SIGKILL)
	for _, what := range []string{"a descriptor in a socket", "a mount that is nowhere"} {
		if what == "a mount that is nowhere" { // it cannot be mounted while nobody serves
			c.recover()
			release := hiddenUsers[what](m, c.path)
			c.end(syscall.SIGKILL)
			m.expectFailure(m.try(command, "del", c.name), exit.Busy)
			c.recover()
			release()
			continue
		}
		refused(what, []string{"del", c.name}, []string{"prune"})
	}
	for _, alive := range []bool{true, false} {
		if !alive {
			c.add()
			c.end(syscall.SIGKILL)
		}
		release := hiddenUsers["a descriptor in a socket"](m, c.path)
		o := m.try(command, "del", c.name, "--force")
		release()
		m.must(o, command, "del", "--force")
		c.path = ""
	}

	c.add()
	c.del() // nobody is left, and none is made up
	if log, err := os.Stat(filepath.Join(runDir, c.name+".log")); err == nil {
		t.Errorf("left: %s", log.Name())
	}
}
