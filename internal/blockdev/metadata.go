package blockdev

import (
	"fmt"
	"io"
	"sync"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// bounceSize is the buffer through which metadata goes, in bytes: a commit
// writes pages of 4 KiB, open reads the whole map in pieces of this size.
const bounceSize = 1 << 20

// MetadataFile reads and writes metadata through the one description of its
// device. I/O is direct where the file system has it, so that what was written
// and not flushed is not kept in the page cache for a later daemon to find.
//
// A file grows as it is written and reads as zeros beyond its end; a block
// device ends where it ends. Offsets and lengths are multiples of 4096 bytes.
// Safe for several goroutines; nothing is allocated per call.
type MetadataFile struct {
	dev *Device

	mu struct {
		sync.Mutex
		bounce *sys.Mapping // page-aligned, as direct I/O asks
		size   int64        // bytes that the file has, or the device's size
	}
}

// NewMetadataFile wraps an open metadata device, which it does not close.
func NewMetadataFile(dev *Device) (*MetadataFile, error) {
	if dev.align > pageBlock {
		return nil, dev.fail("use", fmt.Errorf("direct I/O on it needs an alignment of %d bytes, more than %d", dev.align, pageBlock), "")
	}
	m, err := sys.Map(bounceSize, true)
	if err != nil {
		return nil, dev.fail("use", err, "")
	}
	f := &MetadataFile{dev: dev}
	f.mu.bounce, f.mu.size = m, dev.size
	return f, nil
}

// Close frees the buffer; the device stays open.
func (f *MetadataFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.bounce.Close()
}

// Size is how many bytes there are: of a file, what has been written so far.
func (f *MetadataFile) Size() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.size
}

// Grows says whether writes beyond Size make room for themselves.
func (f *MetadataFile) Grows() bool { return !f.dev.IsBlock() }

// ReadAt fills p from off. Beyond the end of a file there are zeros, beyond the
// end of a block device io.ErrUnexpectedEOF.
func (f *MetadataFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pieces(p, off, func(p []byte, off int64) error {
		n := min(int64(len(p)), max(0, f.mu.size-off))
		if n < int64(len(p)) && !f.Grows() {
			return fmt.Errorf("read metadata at offset %d: %w", off, io.ErrUnexpectedEOF)
		}
		// A size that is no multiple of 4096 is some other file's; its last
		// bytes cannot be read directly and count as zeros.
		n -= n % pageBlock
		buf := f.mu.bounce.Bytes()[:n]
		if err := sys.ReadFullAt(f.dev.fd(), buf, off); err != nil {
			return err
		}
		clear(p[copy(p, buf):])
		return nil
	})
}

// WriteAt writes p at off. The bytes are durable after Sync.
func (f *MetadataFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pieces(p, off, func(p []byte, off int64) error {
		if end := off + int64(len(p)); end > f.mu.size && !f.Grows() {
			return fmt.Errorf("write metadata: offset %d is beyond the device's end at %d bytes", end, f.mu.size)
		}
		buf := f.mu.bounce.Bytes()[:len(p)]
		copy(buf, p)
		if err := sys.WriteFullAt(f.dev.fd(), buf, off); err != nil {
			return err
		}
		f.mu.size = max(f.mu.size, off+int64(len(p)))
		return nil
	})
}

// pieces cuts a transfer at the size of the bounce buffer. mu must be held.
func (f *MetadataFile) pieces(p []byte, off int64, transfer func([]byte, int64) error) (int, error) {
	if off%pageBlock != 0 || len(p)%pageBlock != 0 {
		return 0, fmt.Errorf("access metadata: offset %d and length %d are no multiples of %d", off, len(p), pageBlock)
	}
	done := 0
	for done < len(p) {
		n := min(len(p)-done, bounceSize)
		if err := transfer(p[done:done+n], off+int64(done)); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Sync makes everything written before durable.
func (f *MetadataFile) Sync() error { return sys.Fdatasync(f.dev.fd()) }
