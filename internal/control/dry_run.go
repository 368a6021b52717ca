package control

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

// DryRun is what a dry run has found. Sizes are bytes.
type DryRun struct {
	Name string `json:"name"`
	// Unchanged: the clone is up as it is defined, and add would do nothing.
	Unchanged bool `json:"unchanged"`
	// New: there are no metadata, they would be made.
	New      bool       `json:"new"`
	Recover  bool       `json:"recover"` // from a dead daemon
	Source   DryRunPart `json:"source"`
	Dest     DryRunPart `json:"dest"`
	Metadata DryRunPart `json:"metadata"`
	Carries  string     `json:"dest_carries"` // what blkid finds on the destination, "" for nothing
	DryRunShape
	DryRunCopy
	Warnings []string `json:"warnings,omitempty"`
}

// DryRunShape is what the clone would be like and take.
type DryRunShape struct {
	Size          int64          `json:"size"`
	RegionSize    int64          `json:"region_size"`
	Regions       uint64         `json:"regions"`
	MetadataBytes int64          `json:"metadata_bytes"` // that they need, sparse
	Memory        footprint.Need `json:"memory"`
	ZeroCopy      bool           `json:"zero_copy"`
}

// DryRunCopy is what hydration would have to do.
type DryRunCopy struct {
	Hydrated   int64  `json:"hydrated"` // already
	ToCopy     int64  `json:"to_copy"`  // the rest but holes of the source
	Hydration  bool   `json:"hydration"`
	SourceRate *int64 `json:"source_rate"` // bytes a second, as measured; null where it is not known
	RateCap    int64  `json:"rate_cap"`    // 0 = none
	Seconds    *int64 `json:"seconds"`     // that copying takes at the lower of the two; null where that is not known
}

// DryRunPart is one of the three. Size is 0 for one that would be made, or is away.
type DryRunPart struct {
	Path string `json:"path"`
	Size int64  `json:"size"`
}

// dryRunWidth is what the text is wrapped to, in columns.
const dryRunWidth = 80

func (t *DryRun) Write(w io.Writer) error {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		b.WriteString(text.Wrapped(fmt.Sprintf("%-8s", label), dryRunWidth, fmt.Sprintf(format, args...)))
	}
	if t.Unchanged {
		line("clone", "%s is up as defined: add would change nothing.", t.Name)
		_, err := io.WriteString(w, b.String())
		return err
	}
	line("clone", "%s, %s, would %s", t.Name, text.Size(t.Size), t.outcome())
	line("source", "%s, %s", t.Source.Path, orMissing(t.Source.Size, "not open"))
	line("dest", "%s, %s, carries %s", t.Dest.Path, orMissing(t.Dest.Size, "would be made"), orNothing(t.Carries))
	line("metadata", "%s, %s, at most %s, sparse", t.Metadata.Path, orMissing(t.Metadata.Size, "would be made"), text.Size(t.MetadataBytes))
	line("regions", "%d of %s", t.Regions, text.Size(t.RegionSize))
	line("memory", "%s, locked at the start; %s at most%s", text.Size(t.Memory.Start), text.Size(t.Memory.Most), copiedNote(t))
	line("copy", "%s; the other %s are hydrated, or holes of the source", text.Size(t.ToCopy), text.Size(t.Size-t.ToCopy))
	line("rate", "%s, read from the source just now; cap %s", rateOr(t.SourceRate), LimitText(t.RateCap))
	line("time", "%s", t.timeText())
	for _, warning := range t.Warnings {
		line("note", "%s", warning)
	}
	b.WriteString("Nothing was changed.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// outcome is what add would do.
func (t *DryRun) outcome() string {
	share := fmt.Sprintf("%.1f %%", float64(t.Hydrated*1000/max(1, t.Size))/10)
	switch {
	case t.New:
		return "be new"
	case t.Recover:
		return "be recovered from its dead daemon, with " + share + " hydrated"
	}
	return "go on, with " + share + " hydrated"
}

// timeText says how long copying takes, and under which conditions.
func (t *DryRun) timeText() string {
	switch {
	case t.ToCopy == 0:
		return "none: there is nothing to copy"
	case !t.Hydration:
		return "none: hydration is off"
	case t.Seconds == nil:
		return "unknown: the source could not be measured"
	}
	return fmt.Sprintf("%s at that rate, with no other users. The speed of the destination is not measured, because that would mean writing to it",
		text.Duration(time.Duration(*t.Seconds)*time.Second))
}

func copiedNote(t *DryRun) string {
	if t.ZeroCopy {
		return ""
	}
	return ", of which some is for copies of requests"
}

func rateOr(rate *int64) string {
	if rate == nil {
		return "unknown"
	}
	return RateText(*rate)
}

func orMissing(size int64, missing string) string {
	if size == 0 {
		return missing
	}
	return text.Size(size)
}

func orNothing(s string) string {
	if s == "" {
		return "nothing known"
	}
	return s
}
