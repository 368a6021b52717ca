package fingerprint

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// Print tells whether a source still has the content of last time. It is a sample, and it is
// taken in pieces, so that a disk with sectors that cannot be read has one too:
//
//	0..63    4 KiB each, spread evenly over the source
//	64..71   the first MiB, in pieces of 128 KiB
//	72..79   the last MiB, likewise
//
// A small source has fewer bytes than that; then pieces overlap, or are shorter.
type Print struct {
	// Pieces are checksums. 0 stands for a piece that could not be read, or was not to be.
	Pieces [NrPieces]uint32
	// Sample is what former releases compare: SHA-256 of the first MiB, then the last. What cannot
	// be read counts as zeros, and Partial says so.
	Sample  [sha256.Size]byte
	Partial bool
	Mtime   int64 // nanoseconds since 1970, of a file; else 0
	Ctime   int64 // when its inode changed last, likewise
}

// NrPieces is the number of pieces of a Print, which is kept on disk: it and they are fixed.
const NrPieces = 80

const (
	spreadPieces = 64
	spreadBytes  = 4 << 10
	sample       = 1 << 20 // of each end, bytes
	endBytes     = 128 << 10
	// readsAtOnce keeps the sample of a source that takes a second for each read below five
	// seconds.
	readsAtOnce = 24
	// deafAfter is how many pieces are tried of a source that gives none, so that a dead disk is
	// not asked for all of them.
	deafAfter = 1 + readsAtOnce
)

// badSector are the errors of a read that speak of its bytes and not of the whole device.
var badSector = []error{syscall.EIO, syscall.EREMOTEIO, syscall.ENODATA, syscall.EBADE, syscall.EILSEQ}

// Take reads the pieces of a source of end bytes into buf, of Bytes; those that are 0 in known are
// not read, as they could not be when known was made. nil reads all. It is an error if nothing can
// be read, and if the source does not answer. read is called by several goroutines; what it fills
// is aligned as buf is, to 4 KiB.
func Take(read func(p []byte, off int64) error, end int64, buf []byte, known *[NrPieces]uint32) (Print, error) {
	s := sampler{read: read, end: end, buf: buf, known: known}
	return s.take()
}

// sampler takes a Print of bytes 0 to end.
type sampler struct {
	read  func(p []byte, off int64) error // is called by several goroutines
	end   int64
	buf   []byte // Bytes
	known *[NrPieces]uint32

	out       Print
	good, bad int
}

// Bytes is what both ends and the spread pieces take in memory.
const Bytes = 2*sample + spreadPieces*spreadBytes

// pieceRead is the read of a piece, and what it gave.
type pieceRead struct {
	i   int
	p   []byte
	off int64
	err error
}

// take reads the first piece, and if that gives nothing final the others, readsAtOnce at a time: a
// source that is far away takes as long for many as for one.
func (s *sampler) take() (Print, error) {
	pieces := s.pieces()
	for n := 1; len(pieces) > 0; n = readsAtOnce {
		n = min(n, len(pieces))
		if err := s.readAll(pieces[:n]); err != nil {
			return s.out, err
		}
		pieces = pieces[n:]
	}
	s.out.Sample = sha256.Sum256(s.buf[:2*min(sample, s.end)])
	return s.out, nil
}

// pieces are those to be read.
func (s *sampler) pieces() (pieces []pieceRead) {
	add := func(i int, p []byte, off int64) {
		if s.known == nil || s.known[i] != 0 {
			pieces = append(pieces, pieceRead{i: i, p: p, off: off})
			return
		}
		s.unread(i, p)
	}
	n, spread := min(spreadBytes, s.end), s.buf[2*sample:]
	for i := range spreadPieces {
		off := (2*int64(i) + 1) * (s.end / (2 * spreadPieces)) / spreadBytes * spreadBytes
		add(i, spread[int64(i)*spreadBytes:][:n], min(off, (s.end-n)/spreadBytes*spreadBytes))
	}
	n = min(sample, s.end)
	for side, begin := range []int64{0, s.end - n} {
		for at := int64(0); at < n; at += endBytes {
			add(spreadPieces+side*sample/endBytes+int(at/endBytes), s.buf[int64(side)*n:][at:min(at+endBytes, n)], begin+at)
		}
	}
	return pieces
}

// readAll reads pieces at the same time.
func (s *sampler) readAll(pieces []pieceRead) error {
	var reads sync.WaitGroup
	for i := range pieces {
		p := &pieces[i]
		reads.Go(guard.Wrap("read a sample", func() { p.err = s.read(p.p, p.off) }))
	}
	reads.Wait()
	for i := range pieces {
		if err := s.done(&pieces[i]); err != nil {
			return err
		}
	}
	return nil
}

// done takes what the read of a piece gave.
func (s *sampler) done(p *pieceRead) error {
	if p.err == nil {
		s.good++
		sum := sha256.Sum256(p.p)
		s.out.Pieces[p.i] = max(1, binary.LittleEndian.Uint32(sum[:]))
		return nil
	}
	s.bad++
	local := slices.ContainsFunc(badSector, func(e error) bool { return errors.Is(p.err, e) })
	if !local || s.good == 0 && s.bad == deafAfter {
		return fmt.Errorf("sample of %d bytes at offset %d: %w", len(p.p), p.off, p.err)
	}
	s.unread(p.i, p.p)
	return nil
}

// unread has piece i count as zeros.
func (s *sampler) unread(i int, p []byte) {
	clear(p)
	s.out.Partial = s.out.Partial || i >= spreadPieces
}
