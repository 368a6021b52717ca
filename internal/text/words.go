package text

import (
	"fmt"
	"strings"
	"time"
)

// Duration prints the two largest units: 3m28s, 24m, 2h5m, 3d4h.
func Duration(d time.Duration) string {
	units := []struct {
		name string
		d    time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}
	for i, u := range units {
		if d < u.d {
			continue
		}
		text := fmt.Sprintf("%d%s", d/u.d, u.name)
		if i+1 < len(units) && d%u.d >= units[i+1].d {
			text += fmt.Sprintf("%d%s", d%u.d/units[i+1].d, units[i+1].name)
		}
		return text
	}
	return "0s"
}

// Wrapped wraps text to a width, behind a head that its further lines leave empty.
func Wrapped(head string, width int, text string) string {
	lines := []string{head}
	for word := range strings.FieldsSeq(text) {
		last := &lines[len(lines)-1]
		if len(*last)+1+len(word) > width && len(*last) > len(head) {
			lines = append(lines, strings.Repeat(" ", len(head)))
			last = &lines[len(lines)-1]
		}
		*last += " " + word
	}
	return strings.Join(lines, "\n") + "\n"
}

func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func Plural(n int64, what string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func Capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// Times is "1 open", "2 opens".
func Times(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
