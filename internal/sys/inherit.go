package sys

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// limits of a daemon (getrlimit(2)), whatever its caller's are. Not listed is what a daemon makes
// no use of.
var limits = []struct {
	resource  int
	soft, max uint64
}{
	{unix.RLIMIT_NOFILE, 4096, 4096}, // 32 connections, and some for each of at most 64 queues
	{unix.RLIMIT_CORE, 0, 0},         // the fence of I7 opens when the process is gone
	{unix.RLIMIT_FSIZE, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
	{unix.RLIMIT_AS, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
	{unix.RLIMIT_DATA, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
	{unix.RLIMIT_CPU, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
	{unix.RLIMIT_RTTIME, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
	{unix.RLIMIT_NPROC, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
	{unix.RLIMIT_MEMLOCK, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
	{unix.RLIMIT_STACK, 8 << 20, unix.RLIM_INFINITY},
}

// SetLimits gives this process the limits of a daemon. To raise what its caller has lowered takes
// CAP_SYS_RESOURCE.
func SetLimits() error {
	var errs error
	for _, l := range limits {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.soft, Max: l.max}); err != nil {
			errs = errors.Join(errs, fmt.Errorf("set limit %d: %w", l.resource, err))
		}
	}
	return errs
}

// KeepDescriptors has every descriptor but the first three closed in whatever this process
// executes. What os/exec hands on is not among them.
func KeepDescriptors() error {
	return wrap("close_range", unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC))
}

// CloseOnExec has a descriptor closed in what this process executes.
func CloseOnExec(fd int) { unix.CloseOnExec(fd) }

// ReplaceByNull makes a descriptor one of /dev/null.
func ReplaceByNull(fd int) error {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("open /dev/null", err)
	}
	defer unix.Close(null)
	return wrap("replace a descriptor", unix.Dup3(null, fd, 0))
}

// ReplaceBy makes descriptor fd lead to where by leads.
func ReplaceBy(fd, by int) error { return wrap("replace a descriptor", unix.Dup3(by, fd, 0)) }

// OnFreshThread calls f on a thread of its own that has nothing of its process's caller; a process
// that f starts, or an Exec, begins with that. In a unit the service manager has decided on
// scheduling, and keepScheduling leaves it.
func OnFreshThread(umask int, keepScheduling bool, f func() error) error {
	result := make(chan error, 1)
	guard.Go("start with nothing inherited", func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := freshen(umask, keepScheduling)
		if err == nil {
			ignored := defaultSignals()
			err = f()
			ignoreSignals(ignored)
		}
		result <- err
	})
	return <-result
}

// freshen changes the calling thread. What it may not change stays: privileges are only given up.
func freshen(umask int, keepScheduling bool) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // the umask is this thread's then
		return wrap("unshare the umask", err)
	}
	unix.Umask(umask)
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil); err != nil {
		return wrap("set the signal mask", err)
	}
	_ = unix.Prctl(unix.PR_SET_SECUREBITS, 0, 0, 0, 0)
	for timer := range 3 { // setitimer(2): they are kept by an exec
		_, _ = unix.Setitimer(unix.ItimerWhich(timer), unix.Itimerval{})
	}
	if keepScheduling {
		return nil
	}
	var all unix.CPUSet
	for i := range all {
		all[i] = ^all[i]
	}
	_ = unix.SchedSetaffinity(0, &all)
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: 0}, 0) // SCHED_OTHER, nice 0
	_, _, _ = unix.RawSyscall(unix.SYS_IOPRIO_SET, 1, 0, 0)                             // this thread's; no class: by its nice value
	_, _, _ = unix.RawSyscall(unix.SYS_SET_MEMPOLICY, 0, 0, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_PERSONALITY, 0, 0, 0)
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 50_000, 0, 0, 0) // ns, the kernel's default
	return nil
}

// sigaction is the kernel's struct for rt_sigaction(2).
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

const nrSignals = 64

// defaultSignals gives every signal that is ignored its default action, and returns which these
// were. Go itself leaves some of them as it finds them.
func defaultSignals() (ignored []int) {
	const sigIgn = 1
	for sig := 1; sig <= nrSignals; sig++ {
		var old sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&old)), unsafe.Sizeof(old.mask), 0, 0)
		if errno == 0 && old.handler == sigIgn && setSignal(sig, 0) {
			ignored = append(ignored, sig)
		}
	}
	return ignored
}

func ignoreSignals(signals []int) {
	for _, sig := range signals {
		setSignal(sig, 1)
	}
}

func setSignal(sig int, handler uintptr) bool {
	action := sigaction{handler: handler}
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, unsafe.Sizeof(action.mask), 0, 0)
	return errno == 0
}

// ExecWith starts this program with its arguments, and an environment, in the place of this
// process. It returns only if it fails.
func ExecWith(args, env []string) error {
	return wrap("start this program again", unix.Exec(Program, args, env))
}
