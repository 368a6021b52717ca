package bench

import (
	"fmt"
	"io"
)

// The second document: what a layer costs and gives, which leads hydrated extents straight to the
// destination, and what limits a request on devices that are as fast as memory.

// Candidates besides those of the first document.
const (
	Layered  = "ublk-clone, layer"  // --dm, nothing is led to the destination
	Direct   = "ublk-clone, direct" // --dm, what is hydrated is
	Finished = "ublk-clone, finished"
)

// States of the halves of a clone of which one is hydrated.
const (
	HydratedHalf = "hydrated half"
	OtherHalf    = "other half"
)

// Jobs of writes each of which is followed by an fsync: of the device, and of a file on it.
const (
	FsyncDevice = "4k write and fsync, device"
	FsyncExt4   = "4k write and fsync, ext4"
	// Flushes reach the destination for one fsync.
	Flushes = "flushes/fsync"
)

// Fast devices, which stand in the place of a setting: null_blk that answers in its submitter, and
// by a timer after 10 us, 1024 requests at a time.
const (
	AtOnce = "null_blk without delay"
	After  = "null_blk, 10 us"
)

// FastDevices are all of them, and FastJobs what is measured there.
var (
	FastDevices = []string{AtOnce, After}
	FastJobs    = []struct{ Job, Unit string }{
		{WriteLatency, Mean}, {ReadLatency, Mean}, {WriteIOPS, IOPS}, {ReadIOPS, IOPS}, {WriteMBps, MBps}, {ReadMBps, MBps},
		{JobName("write", 1<<20, 32), MBps}, {JobName("read", 1<<20, 32), MBps},
	}
)

// DirectGoals are those of the second document, in its order.
func DirectGoals() []Goal {
	inHalf := func(what, job, unit string) Goal {
		return Goal{What: what, Ours: of(Direct, HydratedHalf, job, 4*kib, unit), Peers: []Key{of(DMClone, HydratedHalf, job, 4*kib, unit)}}
	}
	beside := func(what, job, unit string) Goal {
		return Goal{What: what, Ours: of(Direct, OtherHalf, job, 4*kib, unit), Peers: []Key{of(Layered, OtherHalf, job, 4*kib, unit)}}
	}
	fsync := func(what, candidate, job string) Goal {
		return Goal{What: what, Ours: of(candidate, "", job, 4*kib, IOPS), Peers: []Key{of(DMClone, "", job, 4*kib, IOPS)}}
	}
	return []Goal{
		inHalf("hydrated half, random write IOPS, to dm-clone", WriteIOPS, IOPS).least(both(0.99)),
		inHalf("hydrated half, random read IOPS, to dm-clone", ReadIOPS, IOPS).least(both(0.99)),
		inHalf("hydrated half, random write latency, to dm-clone", WriteLatency, Mean).most(both(1.01)),
		inHalf("hydrated half, random read latency, to dm-clone", ReadLatency, Mean).most(both(1.01)),
		inHalf("hydrated half, sequential 256 KiB write, to dm-clone", WriteMBps, MBps).least(both(1.6)),
		beside("other half, random write IOPS, to the same with nothing direct", WriteIOPS, IOPS).least(both(0.98)),
		beside("other half, random read IOPS, to the same with nothing direct", ReadIOPS, IOPS).least(both(0.98)),
		beside("other half, random write latency, to the same with nothing direct", WriteLatency, Mean).most(both(1.02)),
		beside("other half, random read latency, to the same with nothing direct", ReadLatency, Mean).most(both(1.02)),
		beside("other half, sequential 256 KiB write, to the same with nothing direct", WriteMBps, MBps).least(both(0.98)),
		{What: "p99 latency of hydrated reads beside hydration, to the same alone",
			Ours:  of(Direct, HydratedHalf, Reader(1, true), 4*kib, P99),
			Peers: []Key{of(Direct, HydratedHalf, Reader(1, false), 4*kib, P99)}, Most: both(1.1)},
		fsync("fsync a second on ext4, half direct, to dm-clone", Direct, FsyncExt4).least(each(0.95, 0.80)),
		fsync("fsync a second on the device, half direct, to dm-clone", Direct, FsyncDevice).least(each(0.95, 0.80)),
		fsync("fsync a second on ext4, finished, to dm-clone", Finished, FsyncExt4).least(both(1.0)),
		fsync("fsync a second on the device, finished, to dm-clone", Finished, FsyncDevice).least(both(1.0)),
		fsync("fsync a second on ext4, without a layer, to dm-clone", Ours, FsyncExt4).least(map[int]float64{1: 0.78}),
		fsync("fsync a second on the device, without a layer, to dm-clone", Ours, FsyncDevice).least(map[int]float64{1: 0.78}),
	}
}

// WriteDirect writes docs/benchmarks-direct.md. Figures that were not measured are in it as missing.
func (s Set) WriteDirect(out io.Writer) error {
	d := document{Set: s, out: out}
	d.print(directIntroduction)
	d.print(d.timesMeasured())
	d.goals(DirectGoals())
	d.everySetup("Half hydrated", halvesText, d.halves)
	d.everySetup("Beside hydration", besideHydrationText, d.besideHydration)
	d.everySetup("Durable writes", durableText, d.durable)
	d.everySetup("Fast devices", fastText, d.fast)
	d.print(directRepeatText)
	return d.err
}

// timesMeasured says how often what a goal judges was measured.
func (d *document) timesMeasured() string {
	least := 0
	for _, figures := range d.Set {
		for _, g := range DirectGoals() {
			if n := len(figures[g.Ours]); n > 0 && (least == 0 || n < least) {
				least = n
			}
		}
	}
	switch {
	case least > 1:
		return fmt.Sprintf("\nA figure that a goal judges is the median of %d, which are measured in turns with those of the others.\n", least)
	case least == 1:
		return "\nThis was a quick run: each figure was measured once, and may be off by 1 or 2 %.\n"
	}
	return ""
}

// halfJobs are the published ones that are measured in halves.
var halfJobs = Published[:5]

func (d *document) halves(at Setup) {
	header := []string{"half", "candidate"}
	for _, p := range halfJobs {
		header = append(header, p.Job+", "+p.Unit)
	}
	rows := [][]string{header}
	add := func(half string, k Key) {
		row := []string{half, k.Candidate}
		for _, p := range halfJobs {
			k.Job, k.Unit = p.Job, p.Unit
			row = append(row, d.cell(at, k))
		}
		rows = append(rows, row)
	}
	add("", Key{Candidate: RawDest, State: HydratedHalf})
	for _, candidate := range []string{DMClone, Ours, Layered, Direct} {
		add(HydratedHalf, Key{Candidate: candidate, State: HydratedHalf, Region: 4 * kib})
	}
	for _, candidate := range []string{Layered, Direct} {
		add(OtherHalf, Key{Candidate: candidate, State: OtherHalf, Region: 4 * kib})
	}
	d.table(rows...)
}

func (d *document) besideHydration(at Setup) {
	rows := [][]string{{"candidate", "latency, us", "p99", "alone, us", "p99"}}
	for _, candidate := range []string{DMClone, Layered, Direct} {
		row := []string{candidate}
		for _, job := range []string{Reader(1, true), Reader(1, false)} {
			for _, unit := range []string{Mean, P99} {
				row = append(row, d.cell(at, of(candidate, HydratedHalf, job, 4*kib, unit)))
			}
		}
		rows = append(rows, row)
	}
	d.table(rows...)
}

func (d *document) durable(at Setup) {
	rows := [][]string{{"candidate", "ext4, fsync/s", "to dm-clone", "device, fsync/s", "to dm-clone", "flushes for one fsync, ext4", "device"}}
	for _, candidate := range []string{RawDest, DMClone, Ours, Direct, Finished} {
		row := []string{candidate}
		key := func(candidate, job, unit string) Key {
			k := of(candidate, "", job, 4*kib, unit)
			if candidate == RawDest {
				k.Region = 0
			}
			return k
		}
		for _, job := range []string{FsyncExt4, FsyncDevice} {
			row = append(row, d.cell(at, key(candidate, job, IOPS)), d.ratio(at, key(candidate, job, IOPS), key(DMClone, job, IOPS)))
		}
		for _, job := range []string{FsyncExt4, FsyncDevice} {
			row = append(row, d.cell(at, key(candidate, job, Flushes)))
		}
		rows = append(rows, row)
	}
	d.table(rows...)
}

func (d *document) fast(at Setup) {
	header := []string{"device", "candidate"}
	for _, j := range FastJobs {
		header = append(header, j.Job+", "+j.Unit)
	}
	rows := [][]string{header}
	for _, device := range FastDevices {
		for _, candidate := range []string{RawDest, DMClone, Ours, Layered, Direct} {
			row := []string{device, candidate}
			for _, j := range FastJobs {
				k := Key{Candidate: candidate, State: HydratedHalf, Setting: device, Job: j.Job, Region: 4 * kib, Unit: j.Unit}
				if candidate == RawDest {
					k.Region = 0
				}
				row = append(row, d.cell(at, k))
			}
			rows = append(rows, row)
		}
	}
	d.table(rows...)
}
