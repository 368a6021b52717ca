// Package doctor looks at what clones need of the machine, and changes nothing of it: it loads no
// module, makes no device and mounts nothing. Each check (checks.go) looks at one thing, through
// what machine gives it (machine.go), and says what that means and what to do. What it cannot see,
// as without root, it says too. kernel_faults.go lists what is known of some kernels.
//
// A new check is a function in checks.go and a line in the table Checks.
package doctor

import (
	"fmt"
)

// level of what a check has found.
type level string

// The levels, from good to bad.
const (
	levelOK      level = "ok"
	levelUnknown level = "unknown" // it could not be looked at
	LevelWarning level = "warning" // clones work, but less well or less safely
	LevelProblem level = "problem" // something that is needed is missing, or a clone needs somebody
)

// finding is what one check says of one thing.
type finding struct {
	Check  string `json:"check"`
	Level  level  `json:"level"`
	Text   string `json:"text"`             // what there is, and what it means
	Action string `json:"action,omitempty"` // what to do about it
	Code   int    `json:"code,omitempty"`   // exit code that a problem gives the command
}

// findings of one check.
type findings struct {
	check string
	all   []finding
}

func (f *findings) ok(format string, args ...any) {
	f.add(levelOK, 0, fmt.Sprintf(format, args...), "")
}

func (f *findings) unknown(format string, args ...any) {
	f.add(levelUnknown, 0, fmt.Sprintf(format, args...), "")
}

func (f *findings) warn(text, action string) { f.add(LevelWarning, 0, text, action) }

func (f *findings) problem(code int, text, action string) { f.add(LevelProblem, code, text, action) }

func (f *findings) add(l level, code int, text, action string) {
	f.all = append(f.all, finding{Check: f.check, Level: l, Text: text, Action: action, Code: code})
}

// check is one of doctor's.
type check struct {
	name string
	look func(*machine, *findings)
}

// Checks are all, in the order in which a clone needs what they look at: the first problem gives
// the exit code.
var Checks = []check{
	{"permission", checkPermission},
	{"kernel", checkKernel},
	{"driver", checkDriver},
	{"io-uring", checkRing},
	{"features", checkFeatures},
	{"devices", checkDevices},
	{"memory", checkMemory},
	{"memory-lock", checkMemoryLock},
	{"reclaim", checkReclaim},
	{"open-files", checkOpenFiles},
	{"live-maps", checkLiveMaps},
	{"run-folder", checkRunDir},
	{"records", checkRecords},
	{"blkid", checkBlkid},
	{"machine-id", checkMachineID},
	{"clones", checkClones},
	{"left-devices", checkLeftDevices},
	{"disks", checkDisks},
	{"service", checkService},
}

// Examine does all checks.
func Examine(h *machine) []finding {
	var all []finding
	for _, c := range Checks {
		f := findings{check: c.name}
		c.look(h, &f)
		all = append(all, f.all...)
	}
	return all
}

func Count(all []finding, l level) (n int) {
	for _, f := range all {
		if f.Level == l {
			n++
		}
	}
	return n
}
