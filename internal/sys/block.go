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

// blkGetDiskSeq is BLKGETDISKSEQ of include/uapi/linux/fs.h, since 5.15.
const blkGetDiskSeq = 0x80081280

// DiskSeq is the number that the kernel has given to the medium of the block device; another medium
// in the same device has another one. 0 where it is not told.
func DiskSeq(fd int) uint64 {
	var seq uint64
	if err := ioctl(fd, blkGetDiskSeq, unsafe.Pointer(&seq)); err != nil {
		return 0
	}
	return seq
}

// LoopIsOver says whether the loop device at path lies on the file that st describes
// (LOOP_GET_STATUS64).
func LoopIsOver(path string, st Stat) bool {
	f, err := Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	return err == nil && info.Device == st.Dev && info.Inode == st.Inode
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
