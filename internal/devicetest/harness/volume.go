package harness

import (
	"fmt"
	"hash/crc64"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Volume is a device or file, open for direct I/O.
type Volume struct {
	m    *Contents
	path string
	F    *os.File
	Size int64 // bytes
	file bool  // not a device
}

// Open opens a device or file for direct I/O; it is closed when the test ends, or by close.
func (m *Contents) Open(path string, flags int) *Volume {
	m.Helper()
	return m.openCached(path, flags|unix.O_DIRECT)
}

// openCached is open for I/O through the page cache.
func (m *Contents) openCached(path string, flags int) *Volume {
	m.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { f.Close() })
	size, err := f.Seek(0, 2)
	if err != nil {
		m.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		m.Fatal(err)
	}
	return &Volume{m: m, path: path, F: f, Size: size, file: info.Mode().IsRegular()}
}

// Close closes the device.
func (v *Volume) Close() {
	v.m.Helper()
	if err := v.F.Close(); err != nil {
		v.m.Fatal(err)
	}
}

// FD is its file descriptor.
func (v *Volume) FD() int { return int(v.F.Fd()) }

// Read reads the whole buffer at off.
func (v *Volume) Read(b []byte, off int64) error { return sys.ReadFullAt(v.FD(), b, off) }

// Write writes the whole buffer at off.
func (v *Volume) Write(b []byte, off int64) error { return sys.WriteFullAt(v.FD(), b, off) }

// WriteDurable is a write with FUA.
func (v *Volume) WriteDurable(b []byte, off int64) error {
	n, err := unix.Pwritev2(v.FD(), [][]byte{b}, off, unix.RWF_DSYNC)
	if err == nil && n != len(b) {
		err = fmt.Errorf("wrote %d of %d bytes", n, len(b))
	}
	return err
}

// Flush is a FLUSH on a device.
func (v *Volume) Flush() error { return sys.Fdatasync(v.FD()) }

// Zero is WRITE_ZEROES.
func (v *Volume) Zero(off, length int64) error {
	if v.file {
		return sys.ZeroRange(v.FD(), off, length)
	}
	return sys.ZeroOut(v.FD(), off, length)
}

// Discard is BLKDISCARD, which nothing but these tests asks for; in a file it makes a hole.
func (v *Volume) Discard(off, length int64) error {
	if v.file {
		return sys.PunchHole(v.FD(), off, length)
	}
	r := [2]uint64{uint64(off), uint64(length)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.FD()), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r)))
	if errno != 0 {
		return fmt.Errorf("discard %d bytes at %d: %w", length, off, errno)
	}
	return nil
}

// Buffer is memory for direct I/O, there until the test ends.
func (m *Contents) Buffer(size int) []byte {
	m.Helper()
	b, free := m.Scratch(size)
	m.Cleanup(free)
	return b
}

// Scratch is buffer that is given back by free.
func (m *Contents) Scratch(size int) (b []byte, free func()) {
	m.Helper()
	mapping, err := sys.Map(size, true)
	if err != nil {
		m.Fatal(err)
	}
	return mapping.Bytes()[:size], func() { mapping.Close() }
}

// IOSize is the largest request that the tests make, in bytes.
const IOSize = 1 << 20

// Sweep reads the first size bytes of a device or file in order.
func (m *Contents) Sweep(path string, size int64, visit func(off int64, b []byte) error) {
	m.Helper()
	m.SweepRange(path, 0, size, visit)
}

// SweepRange reads the bytes [first, end) of a device or file in order.
func (m *Contents) SweepRange(path string, first, end int64, visit func(off int64, b []byte) error) {
	m.Helper()
	v := m.Open(path, os.O_RDONLY)
	defer v.Close()
	buf, free := m.Scratch(IOSize)
	defer free()
	for off := first; off < end; off += IOSize {
		b := buf[:min(IOSize, end-off)]
		if err := v.Read(b, off); err != nil {
			m.Fatalf("%s: %v", path, err)
		}
		if err := visit(off, b); err != nil {
			m.Fatalf("%s: %v", path, err)
		}
	}
}

// ecma: CRC-64 by table is the fastest checksum of the standard library where the CPU is emulated.
var ecma = crc64.MakeTable(crc64.ECMA)

// Sum is a checksum of the first size bytes of a device or file, a value for each MiB.
func (m *Contents) Sum(path string, size int64) []uint64 {
	m.Helper()
	var sums []uint64
	m.Sweep(path, size, func(_ int64, b []byte) error {
		sums = append(sums, crc64.Checksum(b, ecma))
		return nil
	})
	return sums
}

// Same fails the test unless two sums are equal.
func (m *Contents) Same(what string, got, want []uint64) {
	m.Helper()
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			m.Fatalf("%s: MiB %d differs", what, i)
		}
	}
}
