package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/metadata"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// A dry run of add:
//
//	command   what add looks at before it starts a daemon, and starts a process in a daemon's place
//	process   opens and locks the three devices and sees that they belong together, by the steps of a daemon, with
//	          blockdev.Options.DryRun: nothing is made, and what would be written to metadata is forgotten
//	          -> asks the driver, looks at the live map, counts what is to be copied, reads the source for a
//	          moment -> closes all, and reports
//
// It is a process of its own for the reasons that a daemon is one: it runs where daemons run, and a source that never
// answers keeps it, and not the command.

// trial is what a dry run has found. Sizes are bytes.
type trial struct {
	Name string `json:"name"`
	// Unchanged: the clone is up as it is defined, and add would do nothing.
	Unchanged bool `json:"unchanged"`
	// New: there are no metadata, they would be made.
	New      bool   `json:"new"`
	Recover  bool   `json:"recover"` // from a dead daemon
	Source   part   `json:"source"`
	Dest     part   `json:"dest"`
	Metadata part   `json:"metadata"`
	Carries  string `json:"dest_carries"` // what blkid finds on the destination, "" for nothing

	Size          int64      `json:"size"`
	RegionSize    int64      `json:"region_size"`
	Regions       uint64     `json:"regions"`
	MetadataBytes int64      `json:"metadata_bytes"` // that they need, sparse
	Memory        memoryNeed `json:"memory"`
	ZeroCopy      bool       `json:"zero_copy"`

	Hydrated   int64  `json:"hydrated"` // already
	ToCopy     int64  `json:"to_copy"`  // the rest but holes of the source
	Hydration  bool   `json:"hydration"`
	SourceRate *int64 `json:"source_rate"` // bytes a second, as measured; null where it is not known
	RateCap    int64  `json:"rate_cap"`    // 0 = none
	Seconds    *int64 `json:"seconds"`     // that copying takes at the lower of the two; null where that is not known

	Warnings []string `json:"warnings,omitempty"`
}

// part is one of the three. Size is 0 for one that would be made, or is away.
type part struct {
	Path string `json:"path"`
	Size int64  `json:"size"`
}

// dryRun is `add --dry-run`.
func (p *program) dryRun(st start, asJSON string) error {
	if err := p.dir.possible(); err != nil {
		return err
	}
	if err := p.dir.sameThere(&st.Definition); err != nil {
		return err
	}
	there, err := p.clones().unchanged(&st.Definition)
	if err != nil {
		return err
	}
	if there {
		return p.printTrial(&trial{Name: st.Definition.Name, Unchanged: true}, asJSON)
	}
	if p.dir.alive(st.Definition.Name) {
		return nameTaken(st.Definition.Name)
	}
	if !st.Force {
		if st, err = p.clones().continued(st); err != nil {
			return err
		}
	}
	st.DryRun = true
	t, err := p.dir.try(st)
	if err != nil {
		return err
	}
	return p.printTrial(t, asJSON)
}

// possible is create, that changes nothing.
func (d runDir) possible() error {
	info, err := os.Stat(string(d))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err == nil && !info.IsDir():
		err = &os.PathError{Op: "mkdir", Path: string(d), Err: syscall.ENOTDIR}
	}
	if err != nil {
		return d.fail("make folder", string(d), err)
	}
	return nil
}

// try starts the process and waits for its report.
func (d runDir) try(st start) (*trial, error) {
	name := st.Definition.Name
	r, w, err := os.Pipe()
	if err != nil {
		return nil, spawnError(name, err)
	}
	defer r.Close()
	program, err := os.Executable()
	if err != nil {
		return nil, spawnError(name, err)
	}
	cmd := exec.Command(program, daemonCommand)
	cmd.ExtraFiles, cmd.Dir = []*os.File{w}, "/"
	err = startWith(cmd, st)
	w.Close()
	if err != nil {
		return nil, spawnError(name, err)
	}
	ended := make(chan error, 1)
	guard.Go("trial", func() { ended <- cmd.Wait() })
	got, err := d.awaitTrial(r, name)
	if err != nil {
		_ = cmd.Process.Kill() // it may be kept by a device; what it has locked is free when that lets go
		return nil, err
	}
	select { // so that nothing of it is left
	case <-ended:
	case <-time.After(undoLimit):
	}
	return got.Trial, got.Error.err()
}

func (d runDir) awaitTrial(pipe *os.File, name string) (got readiness, err error) {
	if err := pipe.SetReadDeadline(time.Now().Add(startLimit)); err != nil {
		return got, spawnError(name, err)
	}
	line, err := bufio.NewReader(io.LimitReader(pipe, maxLine)).ReadBytes('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return got, &exit.Error{Code: exit.Timeout, Doing: "try to start the daemon of", Object: name, Cause: fmt.Errorf("not done after %s", startLimit),
			Next: "One of its devices does not answer, the source perhaps. Nothing was changed."}
	}
	if err == nil {
		err = json.Unmarshal(line, &got)
	}
	if err != nil {
		return got, spawnError(name, err)
	}
	return got, nil
}

// tryStart is the process's side of try.
func tryStart(st start) (t *trial, err error) {
	e := newEngine(st, zerolog.Nop())
	if st.Recover {
		e.start.Fence = trialFence
	}
	var done steps
	err = done.run(context.Background(), e.trialSteps())
	if err == nil {
		t, err = e.try()
	}
	if err := errors.Join(err, done.stop()); err != nil {
		return nil, err
	}
	return t, nil
}

// trialFence is how long a dry run waits for a dead daemon's last requests.
const trialFence = 2 * time.Second

// trialSteps are those of a daemon's start that can be done without a change.
func (e *cloneEngine) trialSteps() []step {
	return append(e.openSteps(), []step{
		{name: "open the driver", do: e.openDriver, undo: func() error { return e.control.Close() }},
		{name: "look at the live map", do: e.tryLive, undo: e.closeLive},
	}...)
}

// tryLive is openLive, that changes nothing.
func (e *cloneEngine) tryLive(context.Context) error {
	free, err := livemap.TryMount(livemap.Folder)
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "prepare the live map", Object: livemap.Folder, Cause: err}
	}
	_, boot, err := identities()
	if err != nil {
		return err
	}
	sb := e.store.Superblock()
	begins, err := e.takeLive(&sb, boot, sb.NrRegions)
	switch {
	case err != nil && e.start.Force:
		e.warn("--force: it would go on from the last commit, and what was written after it be lost: %v", err)
		return e.closeLive()
	case err != nil:
		return errors.Join(e.refuseLive(err), e.closeLive())
	}
	need := int64(min(bitmap.PagesFor(sb.NrRegions), settledPages)) * bitmap.PageBytes
	if begins && free > 0 && free < need {
		return &exit.Error{Code: exit.Other, Doing: "take memory for the region map", Object: livemap.Folder,
			Cause: fmt.Errorf("%w: %s are free, %s needed", syscall.ENOSPC, formatSize(free), formatSize(need)), Next: "Free some memory."}
	}
	return nil
}

// try finds the figures. The steps are done.
func (e *cloneEngine) try() (*trial, error) {
	def, s := &e.start.Definition, e.settings()
	has, err := e.tryDevice()
	if err != nil {
		return nil, err
	}
	geo, err := clone.NewGeometry(e.geometry.Size, def.RegionSize)
	if err != nil {
		return nil, err
	}
	regions, err := e.mapNow(geo.Regions())
	if err != nil {
		return nil, err
	}
	t := &trial{
		Name: def.Name, New: e.created, Recover: e.start.Recover,
		Source: part{Path: def.Source}, Dest: part{Path: def.Dest, Size: e.dest.Size()}, Metadata: part{Path: def.Metadata},
		Size: geo.Size(), RegionSize: geo.RegionSize(), Regions: geo.Regions(), MetadataBytes: metadata.Size(geo.Regions()),
		ZeroCopy: has.AutoBufReg && has.UserCopy, Hydration: s.Hydration && s.Threshold > 0, RateCap: s.Rate,
	}
	t.Memory = needOf(def, geo.Regions(), !t.ZeroCopy)
	if e.meta != nil && !e.meta.Created() {
		t.Metadata.Size = e.meta.FoundSize()
	}
	if e.dest.Created() {
		t.Dest.Size = 0
	}
	t.Carries = strings.TrimPrefix(strings.TrimPrefix(e.dest.Carries(), "it carries "), "it cannot be told what it carries: ")
	source := e.source.device()
	var holes hydrate.Holes
	if source != nil {
		t.Source.Size, holes = source.Size(), source
	}
	var first int64
	first, t.ToCopy = toCopy(geo, regions, holes)
	t.Hydrated = hydratedBytes(geo, regions)
	if t.ToCopy > 0 && source != nil {
		e.measure(t, source, first)
	}
	e.checkPassdown(s)
	t.Warnings = append(t.Warnings, e.geometry.Warnings...)
	t.Warnings = append(append(t.Warnings, e.dest.Warnings()...), e.warnings...)
	if source != nil {
		t.Warnings = append(t.Warnings, source.Warnings()...)
	} else if why := e.source.away(); why != nil && t.ToCopy > 0 {
		t.Warnings = append(t.Warnings, "it would go on without the source: "+why.Error())
	}
	return t, nil
}

// tryDevice says what the block device would have, or what the one has that is to be recovered.
func (e *cloneEngine) tryDevice() (ublk.Features, error) {
	if !e.start.Recover {
		has, err := ublk.Try(e.control, e.deviceOptions())
		return has, driverError("add the block device", err)
	}
	r := remains{control: e.control}
	err := r.find(&e.start.Definition)
	return r.info.Features, err
}

// mapNow is the region map as the next daemon would find it, in memory of its own.
func (e *cloneEngine) mapNow(nr uint64) (*bitmap.Map, error) {
	memory := make([]bitmap.Page, bitmap.PagesFor(nr))
	regions := bitmap.New(nr, memory)
	if e.created {
		return regions, nil
	}
	if e.live.taken {
		err := e.live.Used(func(page uint64) error { memory[page] = e.live.Pages()[page]; return nil })
		if err != nil {
			return nil, err
		}
		bits := make([]atomic.Uint64, (len(memory)+63)/64)
		err = e.live.EachZero(func(page uint64) error { bits[page/64].Or(1 << (page % 64)); return nil })
		if err != nil {
			return nil, err
		}
		regions.KeepZeros(bits)
	}
	if e.detached() != nil {
		return regions, e.mapOfLive(regions)
	}
	return regions, e.fillMap(regions)
}

// toCopy is how many bytes hydration will copy, and where the first of them are.
func toCopy(geo clone.Geometry, regions *bitmap.Map, holes hydrate.Holes) (first, bytes int64) {
	first = -1
	for r, ok := regions.NextSource(0, geo.Regions()); ok; {
		_, end := regions.Run(r, geo.Regions())
		for r < end {
			hole, stop := hydrate.Extent(geo, holes, r, end)
			if !hole {
				if first < 0 {
					first = geo.Start(r)
				}
				bytes += geo.End(stop-1) - geo.Start(r)
			}
			r = stop
		}
		if end == geo.Regions() {
			break
		}
		r, ok = regions.NextSource(end, geo.Regions())
	}
	return max(0, first), bytes
}

// hydratedBytes is what needs no source any more.
func hydratedBytes(geo clone.Geometry, regions *bitmap.Map) int64 {
	last := geo.Regions() - 1
	tail := geo.Regions()*uint64(geo.RegionSize()) - uint64(geo.Size())
	bytes := (regions.NrHydrated() + regions.NrZero()) * uint64(geo.RegionSize())
	if regions.State(last) != bitmap.Source {
		bytes -= tail // it is shorter
	}
	return int64(bytes)
}

// measure fills in how fast the source is, and how long copying takes.
func (e *cloneEngine) measure(t *trial, source *blockdev.Device, from int64) {
	rate, err := readRate(source, from, t.Size)
	if err != nil {
		t.Warnings = append(t.Warnings, fmt.Sprintf("how fast the source is could not be measured: %v", err))
	}
	limit := t.RateCap
	if rate > 0 {
		t.SourceRate = &rate
		if limit == 0 || rate < limit {
			limit = rate
		}
	}
	if rate > 0 && t.Hydration {
		seconds := (t.ToCopy + limit - 1) / limit
		t.Seconds = &seconds
	}
	if !source.Direct() {
		t.Warnings = append(t.Warnings, "the source is read through the page cache, which may know some of it: it may be slower than measured")
	}
}

// printTrial prints it.
func (p *program) printTrial(t *trial, asJSON string) error {
	if asJSON != "" {
		return encodeJSON(p.out, struct {
			Schema string `json:"schema"`
			DryRun *trial `json:"dry_run"`
		}{schema, t})
	}
	return t.write(p.out)
}

// trialWidth is what the text is wrapped to, in columns.
const trialWidth = 80

func (t *trial) write(w io.Writer) error {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		b.WriteString(wrapped(fmt.Sprintf("%-8s", label), trialWidth, fmt.Sprintf(format, args...)))
	}
	if t.Unchanged {
		line("clone", "%s is up as defined: add would change nothing.", t.Name)
		_, err := io.WriteString(w, b.String())
		return err
	}
	line("clone", "%s, %s, would %s", t.Name, formatSize(t.Size), t.outcome())
	line("source", "%s, %s", t.Source.Path, orMissing(t.Source.Size, "not open"))
	line("dest", "%s, %s, carries %s", t.Dest.Path, orMissing(t.Dest.Size, "would be made"), orNothing(t.Carries))
	line("metadata", "%s, %s, at most %s, sparse", t.Metadata.Path, orMissing(t.Metadata.Size, "would be made"), formatSize(t.MetadataBytes))
	line("regions", "%d of %s", t.Regions, formatSize(t.RegionSize))
	line("memory", "%s, locked at the start; %s at most%s", formatSize(t.Memory.Start), formatSize(t.Memory.Most), copiedNote(t))
	line("copy", "%s; the other %s are hydrated, or holes of the source", formatSize(t.ToCopy), formatSize(t.Size-t.ToCopy))
	line("rate", "%s, read from the source just now; cap %s", rateOr(t.SourceRate), limitText(t.RateCap))
	line("time", "%s", t.time())
	for _, warning := range t.Warnings {
		line("note", "%s", warning)
	}
	b.WriteString("Nothing was changed.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// outcome is what add would do.
func (t *trial) outcome() string {
	share := fmt.Sprintf("%.1f %%", float64(t.Hydrated*1000/max(1, t.Size))/10)
	switch {
	case t.New:
		return "be new"
	case t.Recover:
		return "be recovered from its dead daemon, with " + share + " hydrated"
	}
	return "go on, with " + share + " hydrated"
}

// time says how long copying takes, and under which conditions.
func (t *trial) time() string {
	switch {
	case t.ToCopy == 0:
		return "none: there is nothing to copy"
	case !t.Hydration:
		return "none: hydration is off"
	case t.Seconds == nil:
		return "unknown: the source could not be measured"
	}
	return fmt.Sprintf("%s at that rate, with nobody else there. How fast the destination takes it is not measured, as it would have to be written",
		duration(time.Duration(*t.Seconds)*time.Second))
}

func copiedNote(t *trial) string {
	if t.ZeroCopy {
		return ""
	}
	return ", of which some is for copies of requests"
}

func rateOr(rate *int64) string {
	if rate == nil {
		return "unknown"
	}
	return rateText(*rate)
}

func orMissing(size int64, missing string) string {
	if size == 0 {
		return missing
	}
	return formatSize(size)
}

func orNothing(s string) string {
	if s == "" {
		return "nothing known"
	}
	return s
}
