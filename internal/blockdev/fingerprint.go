package blockdev

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Fingerprint tells whether a source still has the content of last time. It is a sample, and it is taken in pieces, so
// that a disk with sectors that cannot be read has one too:
//
//	0..63    4 KiB each, spread evenly over the source
//	64..71   the first MiB, in pieces of 128 KiB
//	72..79   the last MiB, likewise
//
// A small source has fewer bytes than that; then pieces overlap, or are shorter.
type Fingerprint struct {
	// Pieces are checksums. 0 stands for a piece that could not be read, or was not to be.
	Pieces [NrPieces]uint32
	// Sample is what former releases compare: SHA-256 of the first MiB, then the last. What cannot be read counts as
	// zeros, and Partial says so.
	Sample  [sha256.Size]byte
	Partial bool
	Mtime   int64 // nanoseconds since 1970, of a file; else 0
	Ctime   int64 // when its inode changed last, likewise
}

// NrPieces is the number of pieces of a Fingerprint. They are kept on disk, so their number and places are fixed.
const NrPieces = 80

const (
	spreadPieces = 64
	spreadBytes  = 4 << 10
	sample       = 1 << 20 // of each end, bytes
	endBytes     = 128 << 10
	// deafAfter is how many pieces are tried of a source that gives none, so that a dead disk is not asked for all of them.
	deafAfter = 24
)

// badSector are the errors of a read that speak of its bytes and not of the whole device.
var badSector = []error{syscall.EIO, syscall.EREMOTEIO, syscall.ENODATA, syscall.EBADE, syscall.EILSEQ}

// Fingerprint reads the pieces; those that are 0 in known are not read, as they could not be when known was made. nil reads
// all. It is an error if nothing can be read, if the source does not answer, and if it has changed since it was opened.
func (d *Device) Fingerprint(known *[NrPieces]uint32) (Fingerprint, error) {
	m, err := sys.Map(2*sample, false)
	if err != nil {
		return Fingerprint{}, d.fail("read", err, "")
	}
	defer m.Close()
	s := sampler{
		end: d.size - d.size%int64(d.Align()), buf: m.Bytes(), known: known,
		read: func(p []byte, off int64) error { return sys.ReadFullAt(d.fd(), p, off) },
	}
	f, err := s.take()
	if err == nil {
		err = d.Changed()
	}
	if err != nil {
		return f, d.fail("read", err, "Check the source device.")
	}
	if !d.IsBlock() {
		f.Mtime, f.Ctime = d.stat.Mtime, d.stat.Ctime
	}
	return f, nil
}

// sampler takes a Fingerprint of bytes 0 to end.
type sampler struct {
	read  func(p []byte, off int64) error
	end   int64
	buf   []byte // for both ends
	known *[NrPieces]uint32

	out       Fingerprint
	good, bad int
}

func (s *sampler) take() (Fingerprint, error) {
	for i := range spreadPieces {
		n := min(spreadBytes, s.end)
		off := (2*int64(i) + 1) * (s.end / (2 * spreadPieces)) / spreadBytes * spreadBytes
		if err := s.piece(i, s.buf[:n], min(off, (s.end-n)/spreadBytes*spreadBytes)); err != nil {
			return s.out, err
		}
	}
	n := min(sample, s.end)
	for side, begin := range []int64{0, s.end - n} {
		if err := s.side(spreadPieces+side*sample/endBytes, s.buf[int64(side)*n:][:n], begin); err != nil {
			return s.out, err
		}
	}
	s.out.Sample = sha256.Sum256(s.buf[:2*n])
	return s.out, nil
}

// side reads one end of the source, whose pieces are those from first on.
func (s *sampler) side(first int, buf []byte, begin int64) error {
	for at := int64(0); at < int64(len(buf)); at += endBytes {
		p := buf[at:min(at+endBytes, int64(len(buf)))]
		i := first + int(at/endBytes)
		if err := s.piece(i, p, begin+at); err != nil {
			return err
		}
		if s.out.Pieces[i] == 0 {
			clear(p)
			s.out.Partial = true
		}
	}
	return nil
}

// piece reads piece i into p.
func (s *sampler) piece(i int, p []byte, off int64) error {
	if s.known != nil && s.known[i] == 0 {
		return nil
	}
	err := s.read(p, off)
	if err != nil {
		s.bad++
		local := slices.ContainsFunc(badSector, func(e error) bool { return errors.Is(err, e) })
		if !local || s.good == 0 && s.bad == deafAfter {
			return fmt.Errorf("sample of %d bytes at offset %d: %w", len(p), off, err)
		}
		return nil
	}
	s.good++
	sum := sha256.Sum256(p)
	s.out.Pieces[i] = max(1, binary.LittleEndian.Uint32(sum[:]))
	return nil
}
