package ublk

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// processLives says that process pid exists and is not ending: a server that was killed has its
// device open for some time yet.
func processLives(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !ending(string(stat))
}

// Fields of /proc/PID/stat behind the name, which ends with the last ')' (do_task_stat,
// fs/proc/array.c, 6.12).
const (
	statState   = 0
	statFlags   = 6
	statPending = 28 // signals of the main thread, bit n-1
)

// taskExiting is PF_EXITING of include/linux/sched.h.
const taskExiting = 0x4

// ending reads from a process's stat that it is a zombie, on its way out, or killed and does not
// know it yet.
func ending(stat string) bool {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= statPending {
		return true
	}
	flags, errFlags := strconv.ParseUint(fields[statFlags], 10, 64)
	pending, errPending := strconv.ParseUint(fields[statPending], 10, 64)
	if errFlags != nil || errPending != nil {
		return true
	}
	killed := pending&(1<<(unix.SIGKILL-1)) != 0
	return strings.Contains("ZXx", fields[statState]) || flags&taskExiting != 0 || killed
}
