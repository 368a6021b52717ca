package sys

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// DieQuickly makes the death of this process short, because its locks are
// released and the fence of I7 opens only when it is gone: no core is written
// (PR_SET_DUMPABLE 0, which also keeps other users from attaching, and a core
// limit of zero).
func DieQuickly() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return wrap("prctl PR_SET_DUMPABLE", err)
	}
	return wrap("set core limit", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
}

// SetIOFlusher tells the kernel, for every thread of this process, that memory
// reclaim may not wait for I/O to a device that we serve ourselves
// (PR_SET_IO_FLUSHER; later threads inherit it). It needs CAP_SYS_RESOURCE and
// a binary without cgo.
func SetIOFlusher() error {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0)
	if errno != 0 {
		return fmt.Errorf("prctl PR_SET_IO_FLUSHER: %w", errno)
	}
	return nil
}

// SpareFromOOM keeps the kernel from killing this process when memory runs out
// (oom_score_adj -1000, for this process and what it starts). It needs
// CAP_SYS_RESOURCE.
func SpareFromOOM() error {
	return wrap("set oom_score_adj", os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0))
}

// PeerUID is the user id of the process at the other end of a unix socket
// (SO_PEERCRED: as it was when it connected).
func PeerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, wrap("get socket descriptor", err)
	}
	var cred *unix.Ucred
	var callErr error
	err = raw.Control(func(fd uintptr) {
		cred, callErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, callErr); err != nil {
		return 0, wrap("get SO_PEERCRED", err)
	}
	return cred.Uid, nil
}

// HungUp says whether the process at the other end of a unix socket has closed it. One that has
// only shut down its own sending has not (poll(2): POLLHUP comes when both directions are shut,
// POLLRDHUP for the one).
func HungUp(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	poll := []unix.PollFd{{}}
	err = raw.Control(func(fd uintptr) {
		poll[0].Fd = int32(fd)
		_ = retry(func() error { _, err := unix.Poll(poll, 0); return err })
	})
	return err != nil || poll[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}

// SameDescription says whether two descriptors lead to one open file description (kcmp(2)). It
// needs the right to trace both processes.
func SameDescription(pid1, fd1, pid2, fd2 int) (bool, error) {
	const kcmpFile = 0
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), kcmpFile, uintptr(fd1), uintptr(fd2), 0)
	if errno != 0 {
		return false, fmt.Errorf("kcmp: %w", errno)
	}
	return r == 0, nil
}
