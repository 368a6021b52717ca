package dm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Extent is a stretch of a device, in bytes.
type Extent struct{ Off, Length int64 }

// End is the first byte behind it.
func (e Extent) End() int64 { return e.Off + e.Length }

// deviceNumber is a device number as device-mapper writes it.
func deviceNumber(dev uint64) string { return fmt.Sprintf("%d:%d", sys.Major(dev), sys.Minor(dev)) }

// linear leads a stretch to the same place of the block device of that number.
func linear(first, end int64, dev uint64) sys.DMTarget {
	first, end = first/definition.SectorSize, end/definition.SectorSize
	return sys.DMTarget{Start: uint64(first), Sectors: uint64(end - first), Type: "linear", Params: fmt.Sprintf("%s %d", deviceNumber(dev), first)}
}

// Linear is a table that leads to the block device of that number.
func Linear(size int64, dev uint64) []sys.DMTarget { return []sys.DMTarget{linear(0, size, dev)} }

// Mixed is a table that leads to base, and in the direct extents to dest. They are in order and
// apart from each other.
func Mixed(size int64, base, dest uint64, direct []Extent) (table []sys.DMTarget) {
	at := int64(0)
	for _, e := range direct {
		if e.Off > at {
			table = append(table, linear(at, e.Off, base))
		}
		table = append(table, linear(e.Off, e.End(), dest))
		at = e.End()
	}
	if at < size {
		table = append(table, linear(at, size, base))
	}
	return table
}

// failing is a table that answers everything with an error.
func failing(size int64) []sys.DMTarget {
	return []sys.DMTarget{{Sectors: uint64(size / definition.SectorSize), Type: "error"}}
}

// leads says whether a target leads to the same place of the block device of that number.
func leads(t sys.DMTarget, dev uint64) bool {
	to, begin, _ := strings.Cut(t.Params, " ")
	return t.Type == "linear" && to == deviceNumber(dev) && begin == fmt.Sprint(t.Start)
}

// LeadsTo says whether all of the live table leads to the block device of that number. What a mixed
// table leads to is never all: it has no last unit in its direct extents.
func (l *Layer) LeadsTo(dev uint64) bool {
	for _, t := range l.table {
		if !leads(t, dev) {
			return false
		}
	}
	return len(l.table) > 0
}

// Reaches says whether any of the live table leads to the block device of that number.
func (l *Layer) Reaches(dev uint64) bool {
	return slices.ContainsFunc(l.table, func(t sys.DMTarget) bool { return leads(t, dev) })
}

// Direct are the extents in which the live table leads to dest; else it is to lead to base, or ok is
// false: somebody has given it another table.
func (l *Layer) Direct(base, dest uint64) (direct []Extent, ok bool) {
	for _, t := range l.table {
		e := Extent{Off: int64(t.Start) * definition.SectorSize, Length: int64(t.Sectors) * definition.SectorSize}
		switch last := len(direct) - 1; {
		case leads(t, base):
		case !leads(t, dest):
			return nil, false
		case last >= 0 && direct[last].End() == e.Off:
			direct[last].Length += e.Length
		default:
			direct = append(direct, e)
		}
	}
	return direct, len(l.table) > 0
}

// Elsewhere are the extents of a mixed table that do not lead to base, wherever they lead.
func (l *Layer) Elsewhere(base uint64) (all []Extent) {
	for _, t := range l.table {
		if l.IsMixed() && !leads(t, base) {
			all = append(all, Extent{Off: int64(t.Start) * definition.SectorSize, Length: int64(t.Sectors) * definition.SectorSize})
		}
	}
	return all
}

// LeadsOver says whether the live table leads to base, and to dest in direct extents, if any.
func (l *Layer) LeadsOver(base, dest uint64) bool {
	_, ok := l.Direct(base, dest)
	return ok && !l.LeadsTo(dest)
}

// IsMixed says whether the live table has several targets, as only one with direct extents has.
func (l *Layer) IsMixed() bool { return len(l.table) > 1 }

// Size is that of the live table, in bytes.
func (l *Layer) Size() (size int64) {
	for _, t := range l.table {
		size = max(size, int64(t.Start+t.Sectors)*definition.SectorSize)
	}
	return size
}
