package livemap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Errors of Open.
var (
	// ErrDamaged: the file is no live map, or not one of this metadata.
	ErrDamaged = errors.New("damaged live map")

	// ErrVersion: a program made it whose format this one does not know.
	ErrVersion = errors.New("live map of another version of this program")
)

// Identity says whose marks a file holds.
type Identity struct {
	UUID    [16]byte // of the metadata
	Boot    [16]byte // in which it was made
	Session uint64   // of the metadata
	Regions uint64
}

// fileBytes is the size of a map's file.
func (id Identity) fileBytes() int64 {
	return id.headerBytes() + int64(bitmap.PagesFor(id.Regions))*bitmap.PageBytes
}

// headerBytes is where page 0 lies.
func (id Identity) headerBytes() int64 { return fullBlock*block + id.pageBits() }

// pageBits is what a bit a page takes, in bytes.
func (id Identity) pageBits() int64 {
	bits := int64(bitmap.PagesFor(id.Regions))
	return (bits + 8*block - 1) / (8 * block) * block
}

const (
	magic   = "ublklive"
	version = 2
	block   = 4096

	// SuperblockBytes is the size of what SetSuperblock keeps.
	SuperblockBytes = block
)

// Blocks of the header.
const (
	stateBlock      = iota
	superblockBlock // two, written in turn
	fullBlock       = iota + 1
)

var table = crc32.MakeTable(crc32.Castagnoli)

// fixed is the part of the header that never changes, little-endian. It is the same in every
// version, so that one tells another.
type fixed struct {
	Magic    [8]byte
	Version  uint32
	Checksum uint32 // CRC-32C of this struct with 0 here
	Identity Identity
}

// Map is an open file.
type Map struct {
	path    string
	file    *os.File
	id      Identity
	mapping *sys.Mapping

	// What lies in the mapping, in this order.
	*words
	*trouble
	*place
	copies
	full  bits
	pages []bitmap.Page

	zeroBits // in a file beside the map
}

// bits are a bit a page. Nobody takes one back.
type bits []atomic.Uint64

func (b bits) set(page uint64) { b[page/64].Or(1 << (page % 64)) }

func (b bits) has(page uint64) bool { return b[page/64].Load()>>(page%64)&1 != 0 }

// Create makes an empty map, LifeMade; one that was there is replaced. It has its name only when it
// is complete.
func Create(dir string, id Identity, st State) (*Map, error) {
	path := Path(dir, id.UUID)
	m, err := create(path+newSuffix, id, st)
	if err != nil {
		return nil, fmt.Errorf("make live map %s: %w", path, err)
	}
	m.words.life.Store(uint32(LifeMade))
	err = withNames(dir, func() error { return os.Rename(path+newSuffix, path) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make live map: %w", err), m.Remove(), m.Close())
	}
	m.path = path
	return m, nil
}

// newSuffix is behind the name of a map that is being made.
const newSuffix = ".new"

func create(path string, id Identity, st State) (*Map, error) {
	f, err := openInUse(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	m := &Map{path: path, file: f, id: id}
	if err = f.Truncate(0); err == nil {
		err = f.Truncate(m.id.fileBytes())
	}
	if err == nil { // the whole header: its memory is there from now on
		_, err = f.WriteAt(append(encode(id), make([]byte, m.id.headerBytes()-int64(len(encode(id))))...), 0)
	}
	if err == nil {
		err = m.open()
	}
	if err != nil {
		return nil, errors.Join(err, m.Remove(), m.Close())
	}
	m.SetCommit(st.Commit)
	m.SetState(st.Mode, st.FlushLost)
	if err := m.KeepZeros(); err != nil {
		return nil, errors.Join(err, m.Remove(), m.Close())
	}
	return m, nil
}

// open maps the file.
func (m *Map) open() (err error) {
	if m.mapping, err = sys.MapFile(int(m.file.Fd()), int(m.id.fileBytes())); err != nil {
		return err
	}
	m.words = &sys.As[words](m.mapping)[0]
	m.trouble = &sys.As[trouble](m.mapping)[0]
	m.place = &sys.As[place](m.mapping)[0]
	m.copies = copies{newer: &m.words.newer, blocks: m.mapping.Bytes()[superblockBlock*block : fullBlock*block]}
	m.full = sys.As[atomic.Uint64](m.mapping)[fullBlock*block/8 : m.id.headerBytes()/8]
	m.pages = sys.As[bitmap.Page](m.mapping)[m.id.headerBytes()/bitmap.PageBytes:]
	return nil
}

func encode(id Identity) []byte { return encodeAs(magic, id) }

func encodeAs(magic string, id Identity) []byte {
	h := fixed{Version: version, Identity: id}
	copy(h.Magic[:], magic)
	h.Checksum = crc32.Checksum(h.bytes(), table)
	return h.bytes()
}

func (h *fixed) bytes() []byte {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, h) // to memory, of a fixed size
	return b.Bytes()
}

// Open opens the map of the metadata with this UUID. os.ErrNotExist: there is none; ErrVersion:
// another program made it; ErrDamaged: what is there is not one, or of another size than a map of
// that many regions.
func Open(dir string, uuid [16]byte) (*Map, error) {
	path := Path(dir, uuid)
	f, err := openInUse(path, os.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("open live map: %w", err)
	}
	m := &Map{path: path, file: f}
	if err = m.read(uuid); err == nil {
		err = m.open()
	}
	if err == nil && m.words.zeros.Load() != 0 {
		err = m.zeroBits.open(path, m.id)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open live map %s: %w", path, err), m.unmap(), f.Close())
	}
	return m, nil
}

// read takes the identity from the file.
func (m *Map) read(uuid [16]byte) error {
	var h fixed
	b := make([]byte, binary.Size(&h))
	if _, err := m.file.ReadAt(b, 0); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	_ = binary.Read(bytes.NewReader(b), binary.LittleEndian, &h) // of a fixed size
	sum := h.Checksum
	h.Checksum = 0
	info, err := m.file.Stat()
	m.id = h.Identity
	switch {
	case err != nil:
		return err
	case string(h.Magic[:]) != magic || crc32.Checksum(h.bytes(), table) != sum:
		return fmt.Errorf("%w: wrong header", ErrDamaged)
	case h.Version != version:
		return fmt.Errorf("%w: format version %d, this one knows %d", ErrVersion, h.Version, version)
	case m.id.UUID != uuid || info.Size() != m.id.fileBytes():
		return fmt.Errorf("%w: of other metadata, or of another size", ErrDamaged)
	}
	return nil
}

// Identity says whose marks these are.
func (m *Map) Identity() Identity { return m.id }

// Path is the file's.
func (m *Map) Path() string { return m.path }

// SetLoaded notes that all that the metadata holds is in the map: with what is marked it is the
// whole truth.
func (m *Map) SetLoaded() {
	if m.zeroBits.bits == nil {
		m.words.loaded.Store(1)
		return
	}
	m.words.loadedToo.Store(1)
	m.words.loaded.Store(0)
}

// SetFull notes that every region of a page is durably hydrated: its memory may be given back, or
// was never taken. Before that happens (I9).
func (m *Map) SetFull(page uint64) { m.full.set(page) }

// Full says whether SetFull was called for a page.
func (m *Map) Full(page uint64) bool { return m.full.has(page) }

// Pages is the memory of the region map.
func (m *Map) Pages() []bitmap.Page { return m.pages }

// Touch takes the memory of a page: afterwards a mark in it cannot fail.
func (m *Map) Touch(page uint64) error {
	if err := sys.Populate(&m.pages[page]); err != nil {
		return fmt.Errorf("live map %s page %d: %w", m.path, page, err)
	}
	return nil
}

// Unlock lets pages be given back in a process whose memory is locked. They are never swapped out
// for all that.
func (m *Map) Unlock() error {
	if err := m.mapping.Unlock(); err != nil {
		return fmt.Errorf("live map %s: %w", m.path, err)
	}
	return nil
}

// Used calls visit for each page that has memory, in order. Looking at another would take memory
// for it.
func (m *Map) Used(visit func(page uint64) error) error {
	for page, nr := uint64(0), uint64(len(m.pages)); page < nr; {
		first, end, err := m.stretch(page)
		if err != nil {
			return fmt.Errorf("live map %s: %w", m.path, err)
		}
		for page = first; page < end; page++ {
			if err := visit(page); err != nil {
				return err
			}
		}
		if first == end {
			return nil
		}
	}
	return nil
}

// stretch gives the next pages with memory from page on; none: an empty stretch.
func (m *Map) stretch(page uint64) (first, end uint64, err error) {
	fd := int(m.file.Fd())
	data, err := sys.Data(fd, m.id.headerBytes()+int64(page)*bitmap.PageBytes)
	if errors.Is(err, sys.ErrNoData) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	hole, err := sys.Hole(fd, data)
	if err != nil {
		return 0, 0, err
	}
	header := m.id.headerBytes()
	first = uint64(data-header) / bitmap.PageBytes
	return first, min(uint64(len(m.pages)), uint64(hole-header+bitmap.PageBytes-1)/bitmap.PageBytes), nil
}

// Close unmaps the map and leaves the file for the next daemon. Nothing may use the memory any
// more.
func (m *Map) Close() error {
	if err := errors.Join(m.unmap(), m.file.Close()); err != nil {
		return fmt.Errorf("close live map %s: %w", m.path, err)
	}
	return nil
}

func (m *Map) unmap() (err error) {
	for _, mapping := range [...]*sys.Mapping{m.mapping, m.zeroBits.mapping} {
		if mapping != nil {
			err = errors.Join(err, mapping.Close())
		}
	}
	return err
}

// Remove unlinks the file: its session has ended, or never began. The memory stays until Close. Of
// a map that could not be made and has no bits yet, those beside it are of the one that has the
// name.
func (m *Map) Remove() error {
	err := os.Remove(m.path)
	if named := strings.TrimSuffix(m.path, newSuffix); named == m.path || m.zeroBits.bits != nil {
		if zeros := os.Remove(zerosPath(named)); m.zeroBits.bits != nil {
			err = errors.Join(err, zeros)
		}
	}
	if err != nil {
		return fmt.Errorf("remove live map: %w", err)
	}
	return nil
}
