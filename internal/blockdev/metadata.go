package blockdev

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// MetadataFile is the metadata.Device over an open metadata device: all I/O
// goes through its one description, direct where the file system has that, so
// that what was written and not flushed is not in the page cache for a later
// daemon to find. Buffers for direct I/O come from AllocBuffer. One caller at a
// time.
//
// After Options.DryRun it takes writes and forgets them: nothing of it changes.
type MetadataFile struct {
	*Device
	buffers []*sys.Mapping
	end     int64 // what there is behind it, up to size, is imagined
}

// NewMetadataFile wraps an open metadata device.
func NewMetadataFile(d *Device) (*MetadataFile, error) {
	if d.align > pageBlock {
		return nil, d.fail("use", fmt.Errorf("direct I/O on it needs an alignment of %d bytes, more than %d", d.align, pageBlock), "")
	}
	return &MetadataFile{Device: d, end: d.size}, nil
}

// Grow makes a file at least size bytes long, the new part a hole. A block device keeps the size
// that it has.
func (f *MetadataFile) Grow(size int64) error {
	if f.IsBlock() || f.size >= size {
		return nil
	}
	if !f.dry {
		if err := f.file.Truncate(size); err != nil {
			return f.fail("grow", err, "Free space on its file system.")
		}
		f.end = size
	}
	f.size = size
	return nil
}

// FoundSize is how large it is, whatever Grow has made of it in a dry run, in bytes.
func (f *MetadataFile) FoundSize() int64 { return f.end }

// Close closes the device and frees the buffers; none may be used afterwards.
func (f *MetadataFile) Close() error {
	err := f.Device.Close()
	for _, m := range f.buffers {
		err = errors.Join(err, m.Close())
	}
	f.buffers = nil
	return err
}

// AllocBuffer is a page-aligned buffer of size bytes, there until Close; the same again for who
// asks again, as there is one Store at a time. It is nil if there is no memory.
func (f *MetadataFile) AllocBuffer(size int) []byte {
	for _, m := range f.buffers {
		if len(m.Bytes()) >= size {
			return m.Bytes()[:size:size]
		}
	}
	m, err := sys.Map(size, true)
	if err != nil {
		return nil
	}
	f.buffers = append(f.buffers, m)
	return m.Bytes()[:size:size]
}

// NextData is Device.NextData; what a dry run imagines behind the end holds nothing.
func (f *MetadataFile) NextData(off int64) (int64, error) {
	if !f.dry || f.end == f.size {
		return f.Device.NextData(off)
	}
	there := *f.Device
	there.size = f.end
	data, err := there.NextData(off)
	if data == f.end {
		data = f.size
	}
	return data, err
}

// ReadAt fills p from off.
func (f *MetadataFile) ReadAt(p []byte, off int64) error {
	if f.dry && off+int64(len(p)) > f.end && off+int64(len(p)) <= f.size {
		there := max(0, min(int64(len(p)), f.end-off))
		clear(p[there:])
		p = p[:there]
	}
	err := sys.ReadFullAt(f.fd(), p, off)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s ends before byte %d: %w", f.path, off+int64(len(p)), err)
	}
	return err
}

// WriteAt writes p at off. The bytes are durable after Flush.
func (f *MetadataFile) WriteAt(p []byte, off int64) error {
	if f.dry {
		return nil
	}
	return sys.WriteFullAt(f.fd(), p, off)
}

// ZeroRange makes length bytes at off read as zeros, durably after Flush: a hole in a file, the
// device's own way on a block device.
func (f *MetadataFile) ZeroRange(off, length int64) error {
	if f.dry {
		return nil
	}
	if f.IsBlock() {
		return sys.ZeroOut(f.fd(), off, length)
	}
	err := sys.PunchHole(f.fd(), off, length)
	if !errors.Is(err, syscall.EOPNOTSUPP) {
		return err
	}
	return f.writeZeros(off, length)
}

// Erase gives metadata up that nobody needs any more, so that nobody takes them for those of a
// clone: a file is removed, if its path still names it, of a block device the first length bytes
// are zeroed.
func (f *MetadataFile) Erase(length int64) error {
	if f.IsBlock() {
		return errors.Join(f.ZeroRange(0, length), f.Flush())
	}
	return f.unlink()
}

// zeroPiece is how much is zeroed by one write, in bytes.
const zeroPiece = 1 << 20

func (f *MetadataFile) writeZeros(off, length int64) error {
	m, err := sys.Map(zeroPiece, false)
	if err != nil {
		return err
	}
	defer m.Close()
	for length > 0 {
		n := min(length, zeroPiece)
		if err := f.WriteAt(m.Bytes()[:n], off); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}
