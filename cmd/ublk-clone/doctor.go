package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// doctor looks at what clones need of the machine, and changes nothing of it: no module is loaded, no device made,
// nothing mounted. Each check (doctor_checks.go) looks at one thing, through what host gives it (doctor_host.go), and
// says of it in words what it means and what to do. What it cannot see, as without root, it says too.

// level of what a check has found.
type level string

// The levels, from good to bad.
const (
	levelOK      level = "ok"
	levelUnknown level = "unknown" // it could not be looked at
	levelWarning level = "warning" // clones work, but less well or less safely
	levelProblem level = "problem" // something that is needed is missing, or a clone needs somebody
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

func (f *findings) warn(text, action string) { f.add(levelWarning, 0, text, action) }

func (f *findings) problem(code int, text, action string) { f.add(levelProblem, code, text, action) }

func (f *findings) add(l level, code int, text, action string) {
	f.all = append(f.all, finding{Check: f.check, Level: l, Text: text, Action: action, Code: code})
}

// check is one of doctor's.
type check struct {
	name string
	look func(*machine, *findings)
}

// checks are all, in the order in which a clone needs what they look at: the first problem gives the exit code.
var checks = []check{
	{"permission", (*machine).checkPermission},
	{"kernel", (*machine).checkKernel},
	{"driver", (*machine).checkDriver},
	{"io-uring", (*machine).checkRing},
	{"features", (*machine).checkFeatures},
	{"devices", (*machine).checkDevices},
	{"memory", (*machine).checkMemory},
	{"memory-lock", (*machine).checkMemoryLock},
	{"reclaim", (*machine).checkReclaim},
	{"open-files", (*machine).checkOpenFiles},
	{"live-maps", (*machine).checkLiveMaps},
	{"run-folder", (*machine).checkRunFolder},
	{"records", (*machine).checkRecords},
	{"blkid", (*machine).checkBlkid},
	{"machine-id", (*machine).checkMachineID},
	{"clones", (*machine).checkClones},
	{"left-devices", (*machine).checkLeftDevices},
	{"disks", (*machine).checkDisks},
	{"service", (*machine).checkService},
}

// examineHost does all checks.
func examineHost(h *machine) []finding {
	var all []finding
	for _, c := range checks {
		f := findings{check: c.name}
		c.look(h, &f)
		all = append(all, f.all...)
	}
	return all
}

// diagnosis is what `doctor -o json` prints.
type diagnosis struct {
	Schema   string    `json:"schema"`
	Kernel   string    `json:"kernel"`
	Problems int       `json:"problems"`
	Warnings int       `json:"warnings"`
	Checks   []finding `json:"checks"`
}

func (p *program) doctor(c *cli.Context) error {
	if _, err := words(c, 0, 0); err != nil {
		return err
	}
	output, err := form(c, "json")
	if err != nil {
		return err
	}
	h := newMachine(p.dir, p.allStatuses, p.checkDefined)
	all := examineHost(h)
	if output != "" {
		err = encodeJSON(p.out, diagnosis{Schema: schema, Kernel: h.release(), Problems: count(all, levelProblem), Warnings: count(all, levelWarning), Checks: all})
	} else {
		err = writeFindings(p.out, all)
	}
	if err != nil {
		return err
	}
	return findingsError(all)
}

// allStatuses are those of all clones.
func (p *program) allStatuses() ([]cloneStatus, error) {
	names, err := p.dir.names()
	if err != nil {
		return nil, err
	}
	return p.statuses(names)
}

func count(all []finding, l level) (n int) {
	for _, f := range all {
		if f.Level == l {
			n++
		}
	}
	return n
}

// findingsError is nil unless there is a problem; the first gives its exit code.
func findingsError(all []finding) error {
	first := slices.IndexFunc(all, func(f finding) bool { return f.Level == levelProblem })
	if first < 0 {
		return nil
	}
	f := all[first]
	return &exit.Error{Code: f.Code, Doing: "examine this machine",
		Cause: fmt.Errorf("%s, the first: %s: %s", plural(int64(count(all, levelProblem)), "problem"), f.Check, strings.TrimSuffix(f.Text, ".")),
		Next:  f.Action}
}

// doctorWidth is what the text is wrapped to, in columns.
const doctorWidth = 80

// writeFindings prints a line or more for each finding, and how many of each there are.
func writeFindings(w io.Writer, all []finding) error {
	var b strings.Builder
	for _, f := range all {
		head := fmt.Sprintf("%-8s %-12s", f.Level, f.Check)
		b.WriteString(wrapped(head, doctorWidth, f.Text))
		if f.Action != "" {
			b.WriteString(wrapped(strings.Repeat(" ", len(head)), doctorWidth, "-> "+f.Action))
		}
	}
	fmt.Fprintf(&b, "%s, %s, %d not looked at\n", plural(int64(count(all, levelProblem)), "problem"),
		plural(int64(count(all, levelWarning)), "warning"), count(all, levelUnknown))
	_, err := io.WriteString(w, b.String())
	return err
}
