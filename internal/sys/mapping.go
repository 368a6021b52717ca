package sys

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mapping is page-aligned anonymous memory outside the Go heap: the kernel may
// read and write it while the garbage collector runs, and nothing moves or
// frees it before Close.
type Mapping struct {
	bytes []byte
}

// Map maps at least size bytes of zeros, rounded up to pages, shared so that a
// fork cannot separate them from the ring that uses them. populate faults every
// page in now, so that a later first touch cannot fail or wait.
func Map(size int, populate bool) (*Mapping, error) {
	page := os.Getpagesize()
	size = (size + page - 1) / page * page
	flags := unix.MAP_SHARED | unix.MAP_ANONYMOUS
	if populate {
		flags |= unix.MAP_POPULATE
	}
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return &Mapping{bytes: b}, nil
}

// Bytes is the whole mapping; its length is a multiple of the page size.
func (m *Mapping) Bytes() []byte { return m.bytes }

// Close unmaps. No slice of the mapping may be used afterwards.
func (m *Mapping) Close() error {
	if m.bytes == nil {
		return nil
	}
	err := unix.Munmap(m.bytes)
	m.bytes = nil
	return wrap("unmap", err)
}

// As views the mapping as a slice of T, for as many as fit whole. T must hold
// no pointers: the garbage collector does not look into a mapping.
func As[T any](m *Mapping) []T {
	var t T
	n := len(m.bytes) / int(unsafe.Sizeof(t))
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(m.bytes))), n)
}
