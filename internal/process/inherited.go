package process

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// A daemon may live for years, and inherits nothing of whoever started it that is not decided here.
// `add`, `recover` and `restart` decide it before they start the daemon (Start), --foreground by
// starting itself once more (renew).
//
//	descriptors            0 the definition, then /dev/null; 1 and 2 the log; 3 the pipe that reports readiness; no other.
//	                       Of --foreground 1 is /dev/null once the device is printed
//	environment            DaemonEnv
//	umask                  daemonUmask
//	working directory         /
//	session, terminal      a session of its own, without a terminal; --foreground keeps its terminal, for Ctrl-C
//	resource limits        sys.SetLimits                      in a unit: the unit's
//	scheduling             policy and nice value of a new process, no I/O priority, every CPU, no memory policy,
//	                       the kernel's timer slack           in a unit: the unit's
//	personality            Linux's                            in a unit: the unit's
//	signals                none blocked, none ignored but what run ignores; no timer of an alarm
//	securebits             none, if they are not locked
//	oom_score_adj          prepare: not to be killed
//	huge pages             none: the runtime would have its first heap in two of them, of 2 MiB each, before prepare
//	core dumps             prepare: none
//	mount namespace        Relocate: that of process 1, or a unit's that follows it
//	control group          the caller's, or a unit's
//	privileges, seccomp    the caller's: they can only be given up. `doctor` says what is missing

// daemonUmask: what a daemon makes is its own user's.
const daemonUmask = 0o077

// daemonPath is where a daemon looks for programs.
const daemonPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// kept are the variables that a daemon is given as its caller has them: directories and faults of
// tests, what the runtime is to print when it dies, and the service manager's.
var kept = []string{"UBLK_CLONE_", "GOTRACEBACK=", "GOCOVERDIR=", "NO_COLOR="}

var keptInUnit = append([]string{"NOTIFY_SOCKET=", "WATCHDOG_PID=", "WATCHDOG_USEC=", "INVOCATION_ID=", "JOURNAL_STREAM="}, kept...)

// DaemonEnv is the environment of a process that a daemon or its starter starts.
func DaemonEnv(environ []string) []string { return selectEnv(environ, kept) }

func selectEnv(environ, prefixes []string) []string {
	env := []string{daemonPath}
	for _, v := range environ {
		for _, prefix := range prefixes {
			if strings.HasPrefix(v, prefix) {
				env = append(env, v)
			}
		}
	}
	return env
}

// Start starts a daemon with v on its standard input.
func Start(cmd *exec.Cmd, v any) error {
	cmd.Env, cmd.Dir = DaemonEnv(os.Environ()), "/"
	if err := sys.KeepDescriptors(); err != nil {
		return err
	}
	_ = sys.SetLimits()   // RunSpawned says what may not be raised
	_ = sys.NoHugePages() // prepare says it
	return sys.OnFreshThread(daemonUmask, false, func() error { return StartWith(cmd, v) })
}

// renewedEnv tells a process that it has started itself once more: the value is its process id,
// which stays.
const renewedEnv = "UBLK_CLONE_RENEWED"

// Renew starts this process once more, with nothing of its caller. It returns in the second start,
// or with an error.
func Renew() error {
	if os.Getenv(renewedEnv) == strconv.Itoa(os.Getpid()) {
		return os.Unsetenv(renewedEnv)
	}
	prefixes, unit := kept, os.Getenv("NOTIFY_SOCKET") != ""
	if unit {
		prefixes = keptInUnit
	}
	env := append(selectEnv(os.Environ(), prefixes), renewedEnv+"="+strconv.Itoa(os.Getpid()))
	if err := sys.KeepDescriptors(); err != nil {
		return err
	}
	if !unit {
		_ = sys.SetLimits() // what may not be raised stays
	}
	_ = sys.NoHugePages()
	return sys.OnFreshThread(daemonUmask, unit, func() error { return sys.ExecWith(os.Args, env) })
}

// StartWith starts cmd with v as JSON on its standard input. A pipe takes all of
// it at once, so nothing has to wait for the daemon to read.
func StartWith(cmd *exec.Cmd, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	_, err = in.Write(b)
	return errors.Join(err, in.Close())
}
