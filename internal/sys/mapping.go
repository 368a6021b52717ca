package sys

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mapping is page-aligned memory outside the Go heap, anonymous or a file's: the
// kernel may read and write it while the garbage collector runs, and nothing
// moves or frees it before Close.
type Mapping struct {
	bytes []byte
}

// Map maps at least size bytes of zeros, rounded up to pages, shared so that a
// fork cannot separate them from the ring that uses them. populate faults every
// page in now, so that a later first touch cannot fail or wait; without it only
// what is touched counts as used.
func Map(size int, populate bool) (*Mapping, error) {
	page := os.Getpagesize()
	size = (size + page - 1) / page * page
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	b, err := unix.Mmap(-1, 0, size, prot, flags)
	if err == nil && populate {
		if err = retry(func() error { return unix.Madvise(b, unix.MADV_POPULATE_WRITE) }); err != nil {
			_ = unix.Munmap(b)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return &Mapping{bytes: b}, nil
}

// MapFile maps the first size bytes of a file, shared, to be read and written.
// Pages are taken when they are touched; Populate takes one while that can still
// fail without a signal.
func MapFile(fd, size int) (*Mapping, error) {
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map file, %d bytes: %w", size, err)
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

// Populate takes the memory of v, which lies in a Mapping, so that writing there
// cannot fail any more (MADV_POPULATE_WRITE, since 5.14).
func Populate[T any](v *T) error {
	page := uintptr(os.Getpagesize())
	from := uintptr(unsafe.Pointer(v)) / page * page
	before := uintptr(unsafe.Pointer(v)) - from
	b := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(v), -int(before))), before+unsafe.Sizeof(*v))
	return wrap("populate memory", retry(func() error { return unix.Madvise(b, unix.MADV_POPULATE_WRITE) }))
}

// GiveBack gives the memory of v, which lies in a Mapping, back to the system: it reads as zeros
// from then on, and takes memory again when it is written. Where v is no whole number of pages, as
// on machines with large ones, it is left as it is.
func GiveBack[T any](v *T) error {
	size, page := int(unsafe.Sizeof(*v)), os.Getpagesize()
	if size%page != 0 || uintptr(unsafe.Pointer(v))%uintptr(page) != 0 {
		return nil
	}
	return wrap("give back memory", unix.Madvise(unsafe.Slice((*byte)(unsafe.Pointer(v)), size), unix.MADV_REMOVE))
}
