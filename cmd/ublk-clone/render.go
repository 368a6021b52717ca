package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

// writeTable prints one line for each clone.
func writeTable(w io.Writer, clones []control.Status) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tDEVICE\tSTATE\tDONE\tRATE\tETA\tSOURCE\tDEST\tDIRECT\tFINISH")
	for i := range clones {
		s := &clones[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, text.OrDash(s.UserPath()), s.State,
			s.DoneText(""), control.RateText(s.Rate), control.EtaText(s.ETA), s.Source, s.Dest, text.Size(s.Bytes.Direct), definition.FormatFinish(s.Settings.FinishAuto))
	}
	return t.Flush()
}

// textWidth is the width that text is wrapped to, in columns.
const textWidth = 120

// writeDetails prints everything about one clone. bytes prints integers.
func writeDetails(w io.Writer, s *control.Status, bytes bool) error {
	size := text.Size
	if bytes {
		size = func(n int64) string { return fmt.Sprint(n) }
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s   %s   %s   uuid %s\n", s.Name, text.OrDash(s.UserPath()), size(s.Size), text.OrDash(s.UUID))
	if under := deviceLine(s); under != "" {
		b.WriteString(labelled("device", under))
	}
	b.WriteString(labelled("status", text.Capital(s.State)+": "+s.Reason))
	if s.Action != "" {
		b.WriteString(labelled("action", s.Action))
	}
	if !s.Serves() {
		fmt.Fprintf(&b, "parts   source %s   dest %s   metadata %s\n", s.Source, s.Dest, s.Metadata)
		_, err := io.WriteString(w, b.String())
		return err
	}
	fmt.Fprintf(&b, "done    %s  %s of %s = copied %s + written %s + discarded %s    left %s    direct %s\n", s.DoneText(" "),
		size(s.Bytes.Hydrated), size(s.Size), size(s.Bytes.Copied), size(s.Bytes.Written), size(s.Bytes.Discarded), size(s.Bytes.Remaining), size(s.Bytes.Direct))
	if s.FinishWaits != "" {
		b.WriteString(labelled("finish", "auto, waits for "+s.FinishWaits))
	}
	fmt.Fprintf(&b, "rate    %s    cap %s, floor %s    eta %s    active %s over %s\n", rateLine(s),
		control.LimitText(s.Settings.Rate), control.LimitText(s.Settings.MinRate), etaLine(s),
		text.Duration(time.Duration(s.ActiveSecs)*time.Second), text.Plural(s.Starts, "start"))
	fmt.Fprintf(&b, "parts   source %s   dest %s   metadata %s (%s)\n", s.Source, s.Dest, s.Metadata, s.Mode)
	fmt.Fprintf(&b, "set     region %s   threshold %s   batch %s   retries %d   read-through %s   direct %s   finish %s   discard-passdown %s\n", size(s.RegionSize),
		text.Plural(int64(s.Settings.Threshold), "region"), text.Plural(int64(s.Settings.Batch), "region"), s.Settings.Retries,
		definition.FormatSwitch(s.Settings.ReadThrough), definition.FormatSwitch(s.Settings.Direct), definition.FormatFinish(s.Settings.FinishAuto), definition.FormatSwitch(s.Settings.DiscardPassdown))
	for _, r := range s.BadRanges {
		fmt.Fprintf(&b, "bad     %s at offset %d, %s\n", size(r.Length), r.Offset, text.Plural(int64(r.Attempts), "attempt"))
	}
	for _, f := range s.Failed {
		b.WriteString(labelled("failed", fmt.Sprintf("%s for an error of the %s, the last at byte %d, %s: %s", text.Plural(f.Requests, "request"), f.Side,
			f.Offset, f.Time.Local().Format(time.DateTime), f.Error)))
	}
	for _, warning := range s.Warnings {
		b.WriteString(labelled("note", warning))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// deviceLine says what is behind the path that users are to open, "" if that is the device.
func deviceLine(s *control.Status) string {
	switch {
	case s.Device == "" || s.UserPath() == s.Device:
		return ""
	case s.DMName != "":
		return s.Device + ", under " + s.DMDevice + ", which a finish leads to the destination"
	}
	return s.Device
}

// writeDM prints dm-clone's status line as `dmsetup status NAME` does: start and length in sectors,
// target, then its fields in its order. Sizes are 512-byte sectors, a metadata block is 8 of them.
func writeDM(w io.Writer, s *control.Status) error {
	head := fmt.Sprintf("0 %d clone", s.Size/512)
	if s.Mode == "Fail" {
		_, err := fmt.Fprintln(w, head, "Fail")
		return err
	}
	features := []string{}
	if !s.Settings.Hydration {
		features = append(features, definition.NoHydration)
	}
	if !s.Settings.DiscardPassdown {
		features = append(features, definition.NoDiscardPassdown)
	}
	fields := append([]string{fmt.Sprint(len(features))}, features...)
	_, err := fmt.Fprintf(w, "%s 8 %d/%d %d %d/%d %d %s 4 hydration_threshold %d hydration_batch_size %d %s\n", head,
		s.MetadataBlocks.Used, s.MetadataBlocks.Total, s.RegionSize/512, s.Regions.Hydrated, s.Regions.Total, s.Regions.Hydrating,
		strings.Join(fields, " "), s.Settings.Threshold, s.Settings.Batch, s.Mode)
	return err
}

func rateLine(s *control.Status) string {
	now := control.RateText(s.Rate) + " now"
	if s.Rate == 0 && s.LastRate > 0 {
		now += ", " + control.RateText(s.LastRate) + " when last active"
	}
	return now
}

func etaLine(s *control.Status) string {
	if s.ETA == nil {
		return "unknown (" + s.State + ")"
	}
	return control.EtaText(s.ETA)
}

// labelled wraps text behind a label of eight columns.
func labelled(label, words string) string {
	return text.Wrapped(fmt.Sprintf("%-7s", label), textWidth, words)
}
