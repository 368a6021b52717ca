package identity

import (
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/fingerprint"
	"github.com/ublk-clone/ublk-clone/metadata"
)

func Of(d *blockdev.Device, id blockdev.Identity) metadata.Identity {
	kind := metadata.KindFile
	if d.IsBlock() {
		kind = metadata.KindBlock
	}
	return metadata.Identity{Kind: kind, Size: id.Size, ID: id.ID[:min(len(id.ID), metadata.MaxIDBytes)], Path: ShortPath(d.Path())}
}

// ShortPath is for display only.
func ShortPath(path string) string { return path[:min(len(path), metadata.MaxPathBytes)] }

// SourcePrint is what a superblock says of the source.
type SourcePrint struct {
	id     metadata.Identity
	change int64
	Pieces metadata.Pieces
}

func PrintOf(sb *metadata.Superblock) SourcePrint {
	return SourcePrint{sb.Source, sb.SourceChangeNs, sb.SourcePieces}
}

// Put writes it to a superblock.
func (p *SourcePrint) Put(sb *metadata.Superblock) {
	sb.Source, sb.SourceChangeNs, sb.SourcePieces = p.id, p.change, p.Pieces
}

// Superblock has nothing else.
func (p *SourcePrint) Superblock() *metadata.Superblock {
	sb := new(metadata.Superblock)
	p.Put(sb)
	return sb
}

// PrintSource reads samples of d: those that known has, nil for all.
func PrintSource(d *blockdev.Device, known *metadata.Superblock) (p SourcePrint, err error) {
	id, err := d.Identity()
	if err != nil {
		return p, err
	}
	var pieces *[fingerprint.NrPieces]uint32
	if known != nil && known.SourcePieces.Known() > 0 {
		pieces = (*[fingerprint.NrPieces]uint32)(&known.SourcePieces)
	}
	print, err := d.Fingerprint(pieces)
	if err != nil {
		return p, err
	}
	p.id = Of(d, id)
	p.id.Sample, p.id.ModTimeNs = print.Sample, print.Mtime
	p.change, p.Pieces = print.Ctime, print.Pieces
	return p, nil
}

// SourceDiffers says in which way d is not the source that the superblock knows, and that was in
// use until now.
func SourceDiffers(d *blockdev.Device, sb *metadata.Superblock) error {
	print, err := PrintSource(d, sb)
	if err != nil {
		return err
	}
	return sb.MatchUsedSource(print.Superblock())
}
