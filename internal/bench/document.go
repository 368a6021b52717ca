package bench

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Plot is a picture that the document shows.
type Plot struct{ File, Title string }

// document is what is written, table by table.
type document struct {
	Set
	out io.Writer
	err error // the first of writing
}

// missing is the cell of what was not measured.
const missing = "missing"

// WriteDocument writes docs/benchmarks.md. Figures that were not measured are in it as missing.
func (s Set) WriteDocument(out io.Writer, plots []Plot) error {
	d := document{Set: s, out: out}
	d.print(introduction)
	d.goals(Goals())
	for _, p := range plots {
		d.print("\n![" + p.Title + "](" + p.File + ")\n")
	}
	d.everySetup("Unhydrated regions", unhydratedText, d.published)
	d.everySetup("Hydrated clones and raw devices", hydratedText, d.hydrated)
	d.everySetup("Sizes and depths", sweepText, d.sweep)
	d.everySetup("Hydration", hydrationText, d.hydration)
	d.everySetup("Beside readers and writers", besideText, d.beside)
	d.everySetup("Start and memory", startText, d.start)
	d.everySetup("What a request costs", costText, d.cost)
	d.print(repeatText)
	return d.err
}

func (d *document) print(text string) {
	if d.err == nil {
		_, d.err = io.WriteString(d.out, text)
	}
}

// everySetup prints a section with a table for each setup.
func (d *document) everySetup(title, text string, table func(Setup)) {
	d.print("\n## " + title + "\n\n" + text)
	for _, at := range d.Setups() {
		d.print(fmt.Sprintf("\nKernel %s, S=%d:\n\n", at.Kernel, at.S))
		table(at)
	}
}

// table prints rows of cells, the first of them the header.
func (d *document) table(rows ...[]string) {
	for i, row := range rows {
		d.print("| " + strings.Join(row, " | ") + " |\n")
		if i == 0 {
			d.print("|" + strings.Repeat(" --- |", len(row)) + "\n")
		}
	}
}

// number prints a value with three digits.
func number(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	return fmt.Sprintf("%.*f", digits, v)
}

// cell is the median of a figure.
func (d *document) cell(at Setup, k Key) string {
	if v, ok := d.Median(at, k); ok {
		return number(v)
	}
	return missing
}

// ratio of two figures.
func (d *document) ratio(at Setup, k, peer Key) string {
	v, ok := d.Median(at, k)
	p, also := d.Median(at, peer)
	if !ok || !also || p == 0 {
		return missing
	}
	return fmt.Sprintf("%.3f", v/p)
}

// goals prints a table for each S, a column for each kernel.
func (d *document) goals(goals []Goal) {
	d.print("\n## Goals\n\n" + goalsText)
	setups := d.Setups()
	for _, s := range []int{4, 1} {
		of := slices.DeleteFunc(slices.Clone(setups), func(at Setup) bool { return at.S != s })
		if len(of) == 0 {
			d.print(fmt.Sprintf("\nS=%d: %s.\n", s, missing))
			continue
		}
		d.print(fmt.Sprintf("\nS=%d:\n\n", s))
		header := []string{"", "ratio", "goal"}
		for _, at := range of {
			header = append(header, at.Kernel)
		}
		rows := [][]string{header}
		var absent []string
		for i, first := range d.Judge(of[0], goals) {
			row := []string{fmt.Sprint(i + 1), first.Goal.What, first.limit()}
			for _, at := range of {
				v := d.Judge(at, goals)[i]
				row = append(row, v.Text())
				if v.Missing != "" {
					absent = append(absent, fmt.Sprintf("- %s, %s: %s", at.Kernel, v.Goal.What, v.Missing))
				}
			}
			rows = append(rows, row)
		}
		d.table(rows...)
		if len(absent) > 0 {
			d.print("\nNot measured:\n\n" + strings.Join(absent, "\n") + "\n")
		}
	}
}

func (v Verdict) limit() string {
	if v.Least {
		return fmt.Sprintf("at least %v", v.Limit)
	}
	return fmt.Sprintf("at most %v", v.Limit)
}

// Text is the verdict in a cell.
func (v Verdict) Text() string {
	switch {
	case v.Missing != "":
		return missing
	case v.Met:
		return fmt.Sprintf("met, %.3f", v.Ratio)
	}
	return fmt.Sprintf("**not met**, %.3f", v.Ratio)
}

// Line is the verdict in a line of its own, with what it is made of.
func (v Verdict) Line() string {
	if v.Missing != "" {
		return fmt.Sprintf("%-8s %s (%s): no figure of %s", missing, v.Goal.What, v.limit(), v.Missing)
	}
	word := "NOT MET"
	if v.Met {
		word = "met"
	}
	return fmt.Sprintf("%-8s %.3f, %s: %s (%s to %s %s)", word, v.Ratio, v.limit(), v.Goal.What, number(v.Ours), number(v.Peer), v.Goal.Ours.Unit)
}

// jobHeader is the row above figures of the published jobs.
func jobHeader(first ...string) []string {
	for _, p := range Published {
		first = append(first, p.Job+", "+p.Unit)
	}
	return first
}

// jobRow is the published jobs' figures of one candidate.
func (d *document) jobRow(at Setup, k Key, first ...string) []string {
	for _, p := range Published {
		k.Job, k.Unit = p.Job, p.Unit
		first = append(first, d.cell(at, k))
	}
	return first
}

func regionText(region int64) string { return fmt.Sprintf("%d KiB", region>>10) }

func (d *document) published(at Setup) {
	rows := [][]string{jobHeader("region", "candidate")}
	for _, region := range Regions {
		for _, candidate := range []string{DMClone, Ours, Snapshot} {
			rows = append(rows, d.jobRow(at, Key{Candidate: candidate, State: Unhydrated, Region: region}, regionText(region), candidate))
		}
	}
	d.table(rows...)
}

func (d *document) hydrated(at Setup) {
	rows := [][]string{jobHeader("region", "candidate")}
	for _, raw := range []string{RawSource, RawDest} {
		rows = append(rows, d.jobRow(at, Key{Candidate: raw}, "", raw))
	}
	for _, region := range Regions {
		for _, candidate := range []string{DMClone, Ours} {
			rows = append(rows, d.jobRow(at, Key{Candidate: candidate, State: Hydrated, Region: region}, regionText(region), candidate))
		}
	}
	d.table(rows...)
}

// SweepJobs are the names of all of Sweep, and the mixed one.
func SweepJobs() []string {
	var all []string
	for _, direction := range Sweep.Directions {
		for _, size := range Sweep.Sizes {
			for _, depth := range Sweep.Depths {
				all = append(all, JobName(direction, size, depth))
			}
		}
	}
	return append(all, Mixed)
}

func (d *document) sweep(at Setup) {
	rows := [][]string{{"job", RawDest, DMClone, Ours, "ours to raw", "ours to dm-clone"}}
	for _, job := range SweepJobs() {
		raw := Key{Candidate: RawDest, Job: job, Unit: MBps}
		kernel := Key{Candidate: DMClone, State: Hydrated, Job: job, Region: 4 * kib, Unit: MBps}
		ours := kernel
		ours.Candidate = Ours
		rows = append(rows, []string{job, d.cell(at, raw), d.cell(at, kernel), d.cell(at, ours), d.ratio(at, ours, raw), d.ratio(at, ours, kernel)})
	}
	d.table(rows...)
}

func (d *document) hydration(at Setup) {
	rows := [][]string{{"candidate", "settings", MBps, "ns of CPU for 4 KiB"}}
	for _, size := range SourceSizes {
		job := JobName("read", size, SourceDepth)
		rows = append(rows, []string{RawSource, job, d.cell(at, Key{Candidate: RawSource, Job: job, Unit: MBps}), ""})
	}
	row := func(candidate, setting string) {
		k := Key{Candidate: candidate, Setting: setting, Job: Hydration, Region: 4 * kib, Unit: MBps}
		work := k
		work.Unit = Cost
		rows = append(rows, []string{candidate, settingText(setting), d.cell(at, k), d.cell(at, work)})
	}
	row(DMClone, "")
	for _, setting := range Tuned {
		row(DMClone, setting)
	}
	row(Ours, "")
	d.table(rows...)
}

func settingText(setting string) string {
	if setting == "" {
		return "defaults"
	}
	return setting
}

func (d *document) beside(at Setup) {
	rows := [][]string{{"candidate", "settings", "beside", "hydration, MB/s", "latency, us", "p99", "p99.9", "alone, us", "p99", "p99.9"}}
	add := func(candidate, setting, beside, rate, with, alone string) {
		k := Key{Candidate: candidate, Setting: setting, Job: rate, Region: 4 * kib, Unit: MBps}
		row := []string{candidate, settingText(setting), beside, d.cell(at, k)}
		for _, job := range []string{with, alone} {
			if job == alone && setting == Gentle {
				k.Setting = "" // without hydration it is the same
			}
			for _, unit := range []string{Mean, P99, P999} {
				k.Job, k.Unit = job, unit
				row = append(row, d.cell(at, k))
			}
		}
		rows = append(rows, row)
	}
	for _, depth := range []int{1, 2, 4} {
		readers := fmt.Sprintf("readers, depth %d", depth)
		for _, v := range []struct{ candidate, setting string }{{DMClone, ""}, {DMClone, Tuned256}, {Ours, ""}, {Ours, Gentle}} {
			add(v.candidate, v.setting, readers, Beside(Hydration, depth), Reader(depth, true), Reader(depth, false))
		}
	}
	for _, v := range []struct{ candidate, setting string }{{DMClone, Tuned256}, {Ours, ""}} {
		add(v.candidate, v.setting, "a writer", BesideWriter, Writer(true), Writer(false))
	}
	d.table(rows...)
}

func (d *document) start(at Setup) {
	rows := [][]string{{"size", "add to first read, s", "VmRSS, MiB", "Pss, MiB"}}
	for _, size := range StartSizes {
		k := Key{Candidate: Ours, Setting: size, Region: 4 * kib}
		row := []string{size}
		for _, of := range []struct{ job, unit string }{{FirstRead, Seconds}, {RSS, MiB}, {PSS, MiB}} {
			k.Job, k.Unit = of.job, of.unit
			row = append(row, d.cell(at, k))
		}
		rows = append(rows, row)
	}
	d.table(rows...)
}

func (d *document) cost(at Setup) {
	rows := [][]string{{"request at depth 32", RawDest, DMClone, Ours, "ours to dm-clone", "of the daemon", "its system calls"}}
	for _, kind := range []struct {
		job, state string
		region     int64
	}{
		{KindRead, Hydrated, 4 * kib}, {KindWrite, Hydrated, 4 * kib}, {KindWholeRegion, Unhydrated, 4 * kib},
		{KindSourceRead, Unhydrated, 4 * kib}, {KindPartOf, Unhydrated, 8 * kib},
	} {
		raw := Key{Candidate: RawDest, Job: kind.job, Unit: Cost}
		kernel := Key{Candidate: DMClone, State: kind.state, Job: kind.job, Region: kind.region, Unit: Cost}
		ours := kernel
		ours.Candidate = Ours
		daemon, calls := ours, ours
		daemon.Unit, calls.Unit = Daemon, Calls
		rawCell := "-"
		if kind.state == Hydrated {
			rawCell = d.cell(at, raw)
		}
		rows = append(rows, []string{kind.job + ", " + kind.state, rawCell, d.cell(at, kernel), d.cell(at, ours), d.ratio(at, ours, kernel),
			d.cell(at, daemon), d.cell(at, calls)})
	}
	d.table(rows...)
}
