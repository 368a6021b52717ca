package doctor

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

// Report is what `doctor -o json` prints.
type Report struct {
	Schema   string    `json:"schema"`
	Kernel   string    `json:"kernel"`
	Problems int       `json:"problems"`
	Warnings int       `json:"warnings"`
	Checks   []finding `json:"checks"`
}

// Problem is nil unless there is a problem; the first gives its exit code.
func Problem(all []finding) error {
	first := slices.IndexFunc(all, func(f finding) bool { return f.Level == LevelProblem })
	if first < 0 {
		return nil
	}
	f := all[first]
	return &exit.Error{Code: f.Code, Doing: "examine this machine",
		Cause: fmt.Errorf("%s, the first: %s: %s", text.Plural(int64(Count(all, LevelProblem)), "problem"), f.Check, strings.TrimSuffix(f.Text, ".")),
		Next:  f.Action}
}

// doctorWidth is what the text is wrapped to, in columns.
const doctorWidth = 80

// Write prints a line or more for each finding, and how many of each there are.
func Write(w io.Writer, all []finding) error {
	var b strings.Builder
	for _, f := range all {
		head := fmt.Sprintf("%-8s %-12s", f.Level, f.Check)
		b.WriteString(text.Wrapped(head, doctorWidth, f.Text))
		if f.Action != "" {
			b.WriteString(text.Wrapped(strings.Repeat(" ", len(head)), doctorWidth, "-> "+f.Action))
		}
	}
	fmt.Fprintf(&b, "%s, %s, %d not looked at\n", text.Plural(int64(Count(all, LevelProblem)), "problem"),
		text.Plural(int64(Count(all, LevelWarning)), "warning"), Count(all, levelUnknown))
	_, err := io.WriteString(w, b.String())
	return err
}
