package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// BlockSize64 is the size of a block device in bytes (BLKGETSIZE64).
func BlockSize64(fd int) (int64, error) {
	var size uint64
	err := ioctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&size))
	return int64(size), wrap("ioctl BLKGETSIZE64", err)
}

// LogicalBlock is the smallest unit that the block device can address, in
// bytes (BLKSSZGET).
func LogicalBlock(fd int) (int, error) {
	var n int32
	err := ioctl(fd, unix.BLKSSZGET, unsafe.Pointer(&n))
	return int(n), wrap("ioctl BLKSSZGET", err)
}

// PhysicalBlock is the unit that the block device writes without reading
// first, in bytes (BLKPBSZGET).
func PhysicalBlock(fd int) (int, error) {
	var n uint32
	err := ioctl(fd, unix.BLKPBSZGET, unsafe.Pointer(&n))
	return int(n), wrap("ioctl BLKPBSZGET", err)
}

// IsReadOnly says whether the block device refuses writes (BLKROGET).
func IsReadOnly(fd int) (bool, error) {
	var n int32
	err := ioctl(fd, unix.BLKROGET, unsafe.Pointer(&n))
	return n != 0, wrap("ioctl BLKROGET", err)
}

// ZeroOut makes length bytes at off read as zeros (BLKZEROOUT), by the
// device's write-zeroes or by written zeros. EINVAL where the range is not
// aligned to the logical block.
func ZeroOut(fd int, off, length int64) error {
	r := [2]uint64{uint64(off), uint64(length)}
	return wrap("ioctl BLKZEROOUT", ioctl(fd, unix.BLKZEROOUT, unsafe.Pointer(&r)))
}

// ioctl passes a pointer that the kernel reads or fills during the call only.
func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	return retry(func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		if errno != 0 {
			return errno
		}
		return nil
	})
}
