package sys

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// initMounts is the mount namespace of process 1.
const initMounts = "/proc/1/ns/mnt"

// InInitMounts says whether this process is in the mount namespace of process 1.
func InInitMounts() (bool, error) {
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false, err
	}
	init, err := os.Readlink(initMounts)
	return ours == init, err
}

// DoInInitMounts calls f in the mount namespace of process 1, with its root as root and working
// directory. f has a thread of its own, which ends with it; a process that f starts, or an Exec, is
// in that namespace. It needs CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE.
func DoInInitMounts(f func() error) error {
	result := make(chan error)
	guard.Go("mount namespace", func() {
		runtime.LockOSThread()
		err := enterInitMounts()
		if err == nil {
			err = f()
		}
		result <- err
	})
	return <-result
}

// enterInitMounts moves the calling thread. Root and working directory are shared among the threads
// of a process, and a thread that shares them cannot leave (mntns_install, fs/namespace.c, 6.12).
func enterInitMounts() error {
	ns, err := os.Open(initMounts)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return wrap("unshare the working directory", err)
	}
	return wrap("enter the mount namespace of process 1", unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS))
}

// Program is a path by which this very program is started in any mount namespace.
const Program = "/proc/self/exe"

// ExecAgain starts this program with its arguments in the place of this process. It returns only if
// it fails.
func ExecAgain() error {
	return wrap("start this program again", unix.Exec(Program, os.Args, os.Environ()))
}

// SetName names this process, which else is called after the last part of the path that it was
// started by.
func SetName(name string) error { return os.WriteFile("/proc/self/comm", []byte(name), 0) }
