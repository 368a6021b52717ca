package ublk

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// descriptors are those of a queue's requests.
type descriptors struct {
	mapping []byte   // of ublkcN, written by the driver
	descs   []ioDesc // by tag
}

// mmap maps the queue's descriptors. The driver divides the offset by what the deepest possible
// queue would need (ublk_ch_mmap, ublk_drv.c, 6.12), so that a distance by the real depth would
// silently map queue 0.
func (d *descriptors) mmap(dev *kernelDevice, queue int) error {
	depth := dev.info.Depth
	offset := int64(queue) * int64(roundToPage(maxDepth*int(unsafe.Sizeof(ioDesc{}))))
	length := roundToPage(depth * int(unsafe.Sizeof(ioDesc{})))
	m, err := unix.Mmap(dev.charFD, offset, length, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map descriptors: %w", err)
	}
	d.mapping = m
	d.descs = unsafe.Slice((*ioDesc)(unsafe.Pointer(unsafe.SliceData(m))), depth)
	return nil
}

// desc reads tag's descriptor. The driver wrote it before the completion that brought the request
// and leaves it until the commit.
func (d *descriptors) desc(tag uint16) Desc {
	io := &d.descs[tag]
	return Desc{Op: uint8(io.opFlags & opMask), Flags: io.opFlags, Sector: io.startSector, NrSectors: io.nrSectors}
}

func (d *descriptors) munmap() error {
	if d.mapping == nil {
		return nil
	}
	return unix.Munmap(d.mapping)
}

func roundToPage(n int) int {
	page := os.Getpagesize()
	return (n + page - 1) / page * page
}
