package metadata

import (
	"bytes"
	"fmt"
)

// BlockSize is the unit in which metadata is read and written, in bytes.
const BlockSize = 4096

// Device is where metadata live: a file or a block device. Offsets and lengths are in
// bytes and multiples of BlockSize. A call either does all of it or fails.
type Device interface {
	ReadAt(b []byte, off int64) error
	WriteAt(b []byte, off int64) error
	// Flush makes every write that ended before it durable. After it has failed those
	// writes are taken for lost, whatever a later Flush says.
	Flush() error
	// Size returns the device's size in bytes.
	Size() int64
	// NextData returns the first offset >= off at or behind which there may be something
	// other than zeros, or Size. A sparse file skips its hole; a block device returns off.
	NextData(off int64) (int64, error)
}

// BufferAllocator is implemented by a Device whose buffers must be aligned (O_DIRECT).
// A Store asks once, when it is created or opened, and keeps the buffer.
type BufferAllocator interface {
	AllocBuffer(size int) []byte
}

// Zeroer is implemented by a Device that can zero a range faster than by writing zeros.
// The range reads as zeros afterwards, durably once it was flushed.
type Zeroer interface {
	ZeroRange(off, length int64) error
}

// scratchBytes is the size of a Store's only I/O buffer: one slot when it writes, as many
// as fit when it reads the region map.
const scratchBytes = 16 * slotPairBytes

func newScratch(dev Device) []byte {
	if a, ok := dev.(BufferAllocator); ok {
		return a.AllocBuffer(scratchBytes)
	}
	return make([]byte, scratchBytes)
}

// medium is a device and the only buffer for I/O on it.
type medium struct {
	dev     Device
	scratch []byte
	block   []byte // its first block
}

func newMedium(dev Device) medium {
	scratch := newScratch(dev)
	return medium{dev: dev, scratch: scratch, block: scratch[:BlockSize:BlockSize]}
}

var zeroBlock [BlockSize]byte

// isZero reports whether b is all zero.
func isZero(b []byte) bool {
	for len(b) > BlockSize {
		if !bytes.Equal(b[:BlockSize], zeroBlock[:]) {
			return false
		}
		b = b[BlockSize:]
	}
	return bytes.Equal(b, zeroBlock[:len(b)])
}

// chunks calls visit for each stretch of [off, end) that may hold data, read into buf, in
// steps of slotPairBytes from off. Holes are skipped.
func chunks(dev Device, buf []byte, off, end int64, visit func(off int64, b []byte) error) error {
	for start := off; off < end; {
		data, err := dev.NextData(off)
		if err != nil {
			return fmt.Errorf("find data from byte %d: %w", off, err)
		}
		if data >= end {
			return nil
		}
		off = max(off, start+(data-start)/slotPairBytes*slotPairBytes)
		b := buf[:min(int64(len(buf)), end-off)]
		if err := dev.ReadAt(b, off); err != nil {
			return fmt.Errorf("read %d bytes at byte %d: %w", len(b), off, err)
		}
		if err := visit(off, b); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}
