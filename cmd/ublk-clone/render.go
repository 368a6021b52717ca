package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"
)

// writeTable prints one line for each clone.
func writeTable(w io.Writer, clones []cloneStatus) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tDEVICE\tSTATE\tDONE\tRATE\tETA\tSOURCE\tDEST")
	for i := range clones {
		s := &clones[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, orDash(s.Device), s.State,
			s.doneText(""), rateText(s.Rate), etaText(s.ETA), s.Source, s.Dest)
	}
	return t.Flush()
}

// textWidth is the width that text is wrapped to, in columns.
const textWidth = 120

// writeDetails prints everything about one clone. bytes prints integers.
func writeDetails(w io.Writer, s *cloneStatus, bytes bool) error {
	size := formatSize
	if bytes {
		size = func(n int64) string { return fmt.Sprint(n) }
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s   %s   %s   uuid %s\n", s.Name, orDash(s.Device), size(s.Size), orDash(s.UUID))
	if s.DMName != "" {
		fmt.Fprintf(&b, "over it %s, which `ublk-clone finish` leads to the destination\n", s.DMDevice)
	}
	b.WriteString(labelled("status", capital(s.State)+": "+s.Reason))
	if s.Action != "" {
		b.WriteString(labelled("action", s.Action))
	}
	if !s.serves() {
		fmt.Fprintf(&b, "parts   source %s   dest %s   metadata %s\n", s.Source, s.Dest, s.Metadata)
		_, err := io.WriteString(w, b.String())
		return err
	}
	fmt.Fprintf(&b, "done    %s  %s of %s = copied %s + written %s + discarded %s    left %s\n", s.doneText(" "),
		size(s.Bytes.Hydrated), size(s.Size), size(s.Bytes.Copied), size(s.Bytes.Written), size(s.Bytes.Discarded), size(s.Bytes.Remaining))
	fmt.Fprintf(&b, "rate    %s    cap %s, floor %s    eta %s    active %s over %s\n", s.rateLine(),
		limitText(s.Settings.Rate), limitText(s.Settings.MinRate), s.etaLine(),
		duration(time.Duration(s.ActiveSecs)*time.Second), plural(s.Starts, "start"))
	fmt.Fprintf(&b, "parts   source %s   dest %s   metadata %s (%s)\n", s.Source, s.Dest, s.Metadata, s.Mode)
	fmt.Fprintf(&b, "set     region %s   threshold %s   batch %s   retries %d   read-through %s   discard-passdown %s\n", size(s.RegionSize),
		plural(int64(s.Settings.Threshold), "region"), plural(int64(s.Settings.Batch), "region"), s.Settings.Retries,
		formatSwitch(s.Settings.ReadThrough), formatSwitch(s.Settings.DiscardPassdown))
	for _, r := range s.BadRanges {
		fmt.Fprintf(&b, "bad     %s at offset %d, %s\n", size(r.Length), r.Offset, plural(int64(r.Attempts), "attempt"))
	}
	for _, f := range s.Failed {
		b.WriteString(labelled("failed", fmt.Sprintf("%s for an error of the %s, the last at byte %d, %s: %s", plural(f.Requests, "request"), f.Side,
			f.Offset, f.Time.Local().Format(time.DateTime), f.Error)))
	}
	for _, warning := range s.Warnings {
		b.WriteString(labelled("note", warning))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeDM prints dm-clone's status line as `dmsetup status NAME` does: start
// and length in sectors, target, then its fields in its order. Sizes are
// 512-byte sectors, a metadata block is 8 of them.
func writeDM(w io.Writer, s *cloneStatus) error {
	head := fmt.Sprintf("0 %d clone", s.Size/512)
	if s.Mode == "Fail" {
		_, err := fmt.Fprintln(w, head, "Fail")
		return err
	}
	features := []string{}
	if !s.Settings.Hydration {
		features = append(features, noHydration)
	}
	if !s.Settings.DiscardPassdown {
		features = append(features, noDiscardPassdown)
	}
	fields := append([]string{fmt.Sprint(len(features))}, features...)
	_, err := fmt.Fprintf(w, "%s 8 %d/%d %d %d/%d %d %s 4 hydration_threshold %d hydration_batch_size %d %s\n", head,
		s.MetadataBlocks.Used, s.MetadataBlocks.Total, s.RegionSize/512, s.Regions.Hydrated, s.Regions.Total, s.Regions.Hydrating,
		strings.Join(fields, " "), s.Settings.Threshold, s.Settings.Batch, s.Mode)
	return err
}

// doneText is the percentage, cut and not rounded: 100 % means all of it.
func (s *cloneStatus) doneText(space string) string {
	if s.Size == 0 || !s.serves() {
		return "-"
	}
	tenths := math.Floor(s.done() * 1000)
	if s.Bytes.Remaining > 0 {
		tenths = min(tenths, 999)
	}
	return fmt.Sprintf("%.1f%s%%", tenths/10, space)
}

func (s *cloneStatus) rateLine() string {
	now := rateText(s.Rate) + " now"
	if s.Rate == 0 && s.LastRate > 0 {
		now += ", " + rateText(s.LastRate) + " when last active"
	}
	return now
}

func (s *cloneStatus) etaLine() string {
	if s.ETA == nil {
		return "unknown (" + s.State + ")"
	}
	return etaText(s.ETA)
}

func rateText(rate int64) string {
	if rate <= 0 {
		return "-"
	}
	return formatSize(rate) + "/s"
}

// limitText is a cap or floor, of which 0 is none.
func limitText(rate int64) string {
	if rate == 0 {
		return "none"
	}
	return rateText(rate)
}

func etaText(seconds *int64) string {
	if seconds == nil || *seconds == 0 {
		return "-"
	}
	return duration(time.Duration(*seconds) * time.Second)
}

// duration prints the two largest units: 3m28s, 24m, 2h5m, 3d4h.
func duration(d time.Duration) string {
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

// labelled wraps text behind a label of eight columns.
func labelled(label, words string) string {
	return wrapped(fmt.Sprintf("%-7s", label), textWidth, words)
}

// wrapped wraps text to a width, behind a head that its further lines leave empty.
func wrapped(head string, width int, text string) string {
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

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func plural(n int64, what string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
