package clonetest

import (
	"errors"
	"fmt"
	"strings"
)

// errNotAllowed: a value that no order of the operations leaves.
var errNotAllowed = errors.New("no order of the operations allows it")

// wrongSector is the first sector that is not as it must be.
type wrongSector struct {
	sector int64
	text   string
}

func (w *wrongSector) Error() string { return w.text }

// wrong describes a wrong sector: what was found, what was allowed and all operations that touched
// it.
func (o *oracle) wrong(sector int64, where string, v value, err error) error {
	var b strings.Builder
	region := o.geo.Region(sector * sectorBytes)
	fmt.Fprintf(&b, "sector %d (region %d): %s ", sector, region, where)
	if errors.Is(err, errNotAllowed) {
		fmt.Fprintf(&b, "%v: ", v)
	}
	fmt.Fprintf(&b, "%v\n", err)
	if list := o.at(sector); list != nil {
		fmt.Fprintf(&b, "candidates at %d, newest FLUSH issued %d:\n", o.now, o.flushed)
		for _, c := range *list {
			fmt.Fprintf(&b, "\t#%d %v%s%s%s\n", c.by.id, c.content(), since(", ruled out", c.ruledOut),
				since(", superseded", c.superseded), map[bool]string{true: ", durably"}[c.gone])
		}
	}
	b.WriteString("operations that touched the sector:\n")
	for _, p := range o.history {
		if p.off/sectorBytes <= sector && sector < (p.off+p.length)/sectorBytes || p.length == 0 {
			fmt.Fprintf(&b, "\t%v\n", p)
		}
	}
	return &wrongSector{sector: sector, text: b.String()}
}

func (c *candidate) content() value { return c.by.content() }

func since(what string, t int) string {
	if t == never {
		return ""
	}
	return fmt.Sprintf("%s at %d", what, t)
}

// event is one line of the trace.
type event struct {
	step        int
	what        string
	lane        int
	id          value // of the request, 0: none
	off, length int64 // bytes; length 0: concerns all
	err         error
}

func (e event) String() string {
	s := fmt.Sprintf("%6d  %-14s", e.step, e.what)
	if e.lane >= 0 {
		s += fmt.Sprintf(" lane %d", e.lane)
	}
	if e.id != 0 {
		s += fmt.Sprintf(" #%d", e.id)
	}
	if e.length > 0 {
		s += fmt.Sprintf(" sectors [%d, %d)", e.off/sectorBytes, (e.off+e.length)/sectorBytes)
	}
	if e.err != nil {
		s += ": " + e.err.Error()
	}
	return s
}

// trace keeps what happened; only what concerns the wrong sector is printed.
type trace struct{ events []event }

func (t *trace) last(n int) string {
	var b strings.Builder
	for _, e := range t.events[max(0, len(t.events)-n):] {
		fmt.Fprintf(&b, "\t%v\n", e)
	}
	return b.String()
}

func (t *trace) around(sector int64) string {
	var b strings.Builder
	for _, e := range t.events {
		if e.length == 0 || e.off/sectorBytes <= sector && sector < (e.off+e.length)/sectorBytes {
			fmt.Fprintf(&b, "\t%v\n", e)
		}
	}
	return b.String()
}
