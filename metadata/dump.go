package metadata

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// dump is what both forms of a dump are made of.
type dump struct {
	CheckReport
	PageList []dumpPage `json:"page_list"`
}

// dumpPage is the current image of a page that is not empty.
type dumpPage struct {
	Page     uint64 `json:"page"`
	Slot     int    `json:"slot"`
	Sequence uint64 `json:"sequence"`
	Hydrated uint64 `json:"hydrated"` // regions in H
	Zero     uint64 `json:"zero"`     // regions in Z and not in H
}

// readDump checks the metadata and lists the pages of those that can be read.
func readDump(dev Device) (*dump, error) {
	r, err := Check(dev)
	if err != nil {
		return nil, err
	}
	d := &dump{CheckReport: r}
	if d.Superblock.NrRegions == 0 || dev.Size() < Size(d.Superblock.NrRegions) {
		return d, nil
	}
	err = walk(dev, newScratch(dev), &d.Superblock, func(page uint64, slots *[2]slot) error {
		winner, err := judge(page, slots)
		if winner < 0 || err != nil { // in the report already
			return nil
		}
		w := &slots[winner]
		p := dumpPage{Page: page, Slot: winner, Sequence: w.sequence}
		p.Hydrated, p.Zero = w.img.Counts()
		d.PageList = append(d.PageList, p)
		return nil
	})
	return d, err
}

// DumpJSON writes the superblock, what Check finds and the pages of the region map as one
// JSON object. It writes nothing to dev. Errors: as Check, or w's.
func DumpJSON(dev Device, w io.Writer) error {
	d, err := readDump(dev)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(d)
}

// Dump writes the same as DumpJSON for people to read.
func Dump(dev Device, w io.Writer) error {
	d, err := readDump(dev)
	if err != nil {
		return err
	}
	p := &printer{w: w}
	if d.Superblock.NrRegions != 0 {
		p.superblock(&d.Superblock)
		p.line("map", "%d of %d pages used, %d regions hydrated, %d zero", d.PagesUsed, d.Pages, d.Hydrated, d.Zero)
	}
	for _, pg := range d.PageList {
		p.line("page", "%d slot %d sequence %d hydrated %d zero %d", pg.Page, pg.Slot, pg.Sequence, pg.Hydrated, pg.Zero)
	}
	for _, pr := range d.Problems {
		kind := "warning"
		if pr.Fatal {
			kind = "damage"
		}
		p.line(kind, "byte %d: %s", pr.Offset, pr.What)
	}
	return p.err
}

// printer writes lines "name  value" and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(name, format string, args ...any) {
	_, err := fmt.Fprintf(p.w, "%-16s %s\n", name, fmt.Sprintf(format, args...))
	p.err = errors.Join(p.err, err)
}

func (p *printer) superblock(sb *Superblock) {
	p.line("uuid", "%v", sb.UUID)
	p.line("format", "version %d, features %#x %#x %#x (compat, rocompat, incompat)", sb.Version,
		sb.FeatureCompat, sb.FeatureROCompat, sb.FeatureIncompat)
	p.line("created", "%s", time.Unix(0, sb.CreatedNs).UTC().Format(time.RFC3339))
	p.line("sequence", "%d", sb.Sequence)
	p.line("state", "clean %v, complete %v, mode %v, destination flush failed %v", sb.Clean, sb.Complete, sb.Mode,
		sb.DestFlushFailed)
	p.line("session", "%d, last recorded commit %d, map sum %016x", sb.Session, sb.CommitSequence, sb.MapSum)
	p.line("machine", "%v, boot %v", sb.MachineID, sb.BootID)
	p.line("size", "%d bytes, %d regions of %d bytes, logical blocks of %d bytes", sb.DeviceSize, sb.NrRegions,
		sb.RegionSize, sb.LogicalBlockSize)
	p.identity("source", &sb.Source)
	p.line("source sample", "%d of %d pieces could be read", sb.SourcePieces.Known(), NrPieces)
	p.identity("destination", &sb.Dest)
	s := &sb.Settings
	p.line("settings", "paused %v, rate %d, min rate %d, threshold %d, batch %d, read-through %v, discard passdown %v, direct %v, finish by itself %v, retries %d, source timeout %d",
		s.Paused, s.Rate, s.MinRate, s.Threshold, s.Batch, s.ReadThrough, s.DiscardPassdown, !s.Indirect, s.FinishAuto, s.Retries, s.SourceTimeout)
	c := &sb.Counters
	p.line("counters", "copied %d, written %d, discarded %d bytes; %d starts, %d recoveries, active %d s",
		c.BytesCopied, c.BytesWritten, c.BytesDiscarded, c.Starts, c.Recoveries, c.ActiveSeconds)
}

func (p *printer) identity(name string, id *Identity) {
	p.line(name, "%v of %d bytes, id %q, last seen at %q", id.Kind, id.Size, id.ID, id.Path)
}
