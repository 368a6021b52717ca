package blockdev

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// sector is the unit in which file systems and partition tables of a file are
// addressed, whatever disk the file lies on, in bytes.
const sector = 512

// pageBlock is the alignment that every file system takes, in bytes.
const pageBlock = 4096

// alignFile finds what direct I/O on the file asks for and switches it on for
// a destination and metadata. A source file stays buffered until Match knows
// the block size of the clone.
func (d *Device) alignFile(o Options) error {
	d.logical, d.physic = sector, sector
	var err error
	if d.memory, d.align, err = d.directAlign(); err != nil {
		return d.fail("examine", err, "")
	}
	if d.role == Source {
		return nil
	}
	if d.align > 0 {
		err = sys.SetDirect(d.fd(), true)
	}
	if d.align == 0 || errors.Is(err, syscall.EINVAL) {
		return d.acceptBuffered(o)
	}
	if err != nil {
		return d.fail("open", err, "")
	}
	d.direct = true
	if d.role == Dest {
		d.logical, d.physic = max(sector, d.align), max(sector, d.align)
	}
	return nil
}

// acceptBuffered: the metadata works without direct I/O too, a destination on
// force only.
func (d *Device) acceptBuffered(o Options) error {
	d.align = 0
	if d.role == Metadata {
		return nil
	}
	if !o.Force {
		return d.refuse("open", errors.New("its file system has no direct I/O"), "Use another file system; --force overrides.")
	}
	d.warn("the destination %s has no direct I/O: it needs memory to free memory", d.path)
	return nil
}

// directAlign is the alignment of direct I/O in bytes, that of memory alone and of all, 0 where there is none.
// Where the file system does not say, the one that all of them take.
func (d *Device) directAlign() (memory, all int, err error) {
	memory, offset, known, err := sys.DirectAlign(d.fd())
	if err != nil {
		return 0, 0, err
	}
	if !known {
		return pageBlock, pageBlock, nil
	}
	return memory, max(memory, offset), nil
}

// Geometry is what the clone inherits from its two sides.
type Geometry struct {
	Size          int64 // bytes
	LogicalBlock  int   // bytes: the larger of both
	PhysicalBlock int   // bytes: the larger of both
	DMAAlignment  int   // of memory, bytes: the larger of both
	Warnings      []string
}

// maxLogicalBlock is the largest logical block of a clone, in bytes: a region is a multiple of it.
const maxLogicalBlock = 4096

// Match checks that the destination can take the first size bytes of the source, and sets the source's
// direct I/O to what the clone's block size allows. Exit codes: 8 for a source that is too small or
// whose blocks are too large, 9 for such a destination, 14 for a 512-byte source under a 4096-byte
// clone without force. A size that is no multiple of the clone's logical block is never rounded: 8
// where it is the source's, else 2.
func Match(source, dest *Device, size int64, force bool) (Geometry, error) {
	g := Geometry{
		Size:          size,
		LogicalBlock:  max(source.logical, dest.logical),
		PhysicalBlock: max(source.physic, dest.physic),
	}
	for _, d := range []*Device{source, dest} {
		if d.logical > maxLogicalBlock {
			return g, d.fail("use", fmt.Errorf("it has logical blocks of %d bytes", d.logical), fmt.Sprintf("At most %d are possible.", maxLogicalBlock))
		}
		if d.size < size {
			return g, d.fail("use", fmt.Errorf("it has %d bytes, the clone %d", d.size, size), fmt.Sprintf("Make it at least %d bytes.", size))
		}
	}
	if size == 0 || size%int64(g.LogicalBlock) != 0 {
		return g, g.ragged(source)
	}
	if err := g.checkBlocks(source, dest, force); err != nil {
		return g, err
	}
	err := source.chooseDirect(g.LogicalBlock)
	g.DMAAlignment = max(source.DMAAlign(), dest.DMAAlign())
	return g, err
}

// MatchDest is Match where the source is not there to be looked at: the clone has had these sizes before, in bytes.
func MatchDest(dest *Device, size int64, block int) (Geometry, error) {
	g := Geometry{Size: size, LogicalBlock: block, PhysicalBlock: max(block, dest.physic), DMAAlignment: max(block, dest.DMAAlign())}
	switch {
	case dest.size < size:
		return g, dest.fail("use", fmt.Errorf("it has %d bytes, the clone %d", dest.size, size), fmt.Sprintf("Make it at least %d bytes.", size))
	case dest.logical > block:
		return g, dest.fail("use", fmt.Errorf("it has logical blocks of %d bytes, the clone of %d", dest.logical, block), "")
	}
	return g, nil
}

// ragged is the error of a size that is no multiple of the logical block.
func (g *Geometry) ragged(source *Device) error {
	if g.Size != source.size {
		return &exit.Error{Code: exit.Usage, Doing: "clone", Object: source.path,
			Cause: fmt.Errorf("the length, %d bytes, is no multiple of the clone's logical block, %d bytes", g.Size, g.LogicalBlock),
			Next:  "Sizes are never rounded; give another length."}
	}
	return source.fail("clone", fmt.Errorf("its size, %d bytes, is no multiple of the clone's logical block, %d bytes",
		source.size, g.LogicalBlock), "Sizes are never rounded; use a destination with smaller blocks, or resize the source.")
}

// checkBlocks warns of, or without force refuses, a clone with larger blocks
// than its source: what addresses the source in its own blocks (a partition
// table, a file system with smaller blocks) is unreadable on the clone.
func (g *Geometry) checkBlocks(source, dest *Device, force bool) error {
	if source.logical >= g.LogicalBlock {
		return nil
	}
	text := fmt.Sprintf("the source has logical blocks of %d bytes, the clone of %d: partition tables and file systems with smaller blocks become unreadable",
		source.logical, g.LogicalBlock)
	if !force {
		return &exit.Error{Code: exit.Refused, Doing: "clone " + source.path + " onto", Object: dest.path, Cause: errors.New(text),
			Next: "Use a destination with 512-byte blocks; --force if the content can take it."}
	}
	g.Warnings = append(g.Warnings, text)
	return nil
}

// chooseDirect switches a source to direct I/O where the clone's blocks satisfy
// its alignment. Buffers are page-aligned, offsets in them multiples of block.
func (d *Device) chooseDirect(block int) error {
	want := d.align > 0 && d.align <= block
	if want == d.direct {
		return nil
	}
	err := sys.SetDirect(d.fd(), want)
	if errors.Is(err, syscall.EINVAL) {
		return nil
	}
	if err != nil {
		return d.fail("open", err, "")
	}
	d.direct = want
	return nil
}

// Align is the alignment that I/O through File must keep, in bytes: offsets,
// lengths and buffer addresses. 1 for buffered I/O.
func (d *Device) Align() int {
	if !d.direct {
		return 1
	}
	return d.align
}
