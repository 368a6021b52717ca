package blockdev

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// sector is the unit in which file systems and partition tables of a file are addressed, whatever
// disk the file lies on, in bytes.
const sector = 512

// pageBlock is the alignment that every file system takes, in bytes.
const pageBlock = 4096

// units are the sizes in which a device is read and written. Align is what holds for I/O now.
type units struct {
	logical int // bytes
	physic  int // bytes, physical block
	align   int // bytes, what direct I/O asks of offsets, lengths and buffers
	memory  int // bytes, what it asks of buffers
	direct  bool
}

// LogicalBlock is the smallest unit of I/O in bytes.
func (u *units) LogicalBlock() int { return u.logical }

// PhysicalBlock is the unit that is written without being read first, in bytes.
func (u *units) PhysicalBlock() int { return u.physic }

// Direct says whether I/O bypasses the page cache.
func (u *units) Direct() bool { return u.direct }

// Align is the alignment that I/O through File must keep, in bytes: offsets, lengths and buffer
// addresses. 1 for buffered I/O.
func (u *units) Align() int {
	if !u.direct {
		return 1
	}
	return u.align
}

// setDirect switches a source to direct I/O where the clone's blocks satisfy its alignment. Buffers
// are page-aligned, offsets in them multiples of block.
func (u *units) setDirect(fd, block int) error {
	want := u.align > 0 && u.align <= block
	if want == u.direct {
		return nil
	}
	err := sys.SetDirect(fd, want)
	if errors.Is(err, syscall.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	u.direct = want
	return nil
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

// Match checks that the destination can take the first size bytes of the source, and sets the
// source's direct I/O to what the clone's block size allows. Exit codes: 8 for a source that is too
// small or whose blocks are too large, 9 for such a destination, 14 for a 512-byte source under a
// 4096-byte clone without force. A size that is no multiple of the clone's logical block is never
// rounded: 8 where it is the source's, else 2.
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

// MatchDest is Match without the source: the clone has had these sizes before, in bytes.
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

// checkBlocks warns of, or without force refuses, a clone with larger blocks than its source: what
// addresses the source in its own blocks (a partition table, a file system with smaller blocks) is
// unreadable on the clone.
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

// chooseDirect switches direct I/O on where blocks of that many bytes allow it.
func (d *Device) chooseDirect(block int) error {
	if err := d.setDirect(d.fd(), block); err != nil {
		return d.fail("open", err, "")
	}
	return nil
}
