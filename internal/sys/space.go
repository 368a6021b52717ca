package sys

import (
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoData: no data up to the end of the file.
const ErrNoData = syscall.ENXIO

// Data is the first offset at or after off that holds data (SEEK_DATA). ENXIO
// says that there is none up to the end of the file. It moves the position of
// the description, which nobody here uses.
func Data(fd int, off int64) (int64, error) {
	n, err := unix.Seek(fd, off, unix.SEEK_DATA)
	return n, wrap("seek data", err)
}

// Hole is the first offset at or after off that lies in a hole, the end of the
// file counting as one (SEEK_HOLE).
func Hole(fd int, off int64) (int64, error) {
	n, err := unix.Seek(fd, off, unix.SEEK_HOLE)
	return n, wrap("seek hole", err)
}

// Reserve gives every byte of [0, size) its space on the file system, content
// unchanged, and grows the file to size. EOPNOTSUPP where the file system
// cannot.
func Reserve(fd int, size int64) error {
	return wrap("reserve space", retry(func() error { return unix.Fallocate(fd, 0, 0, size) }))
}

// PunchHole releases length bytes at off; they read as zeros.
func PunchHole(fd int, off, length int64) error {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	return wrap("punch hole", retry(func() error { return unix.Fallocate(fd, mode, off, length) }))
}

// ZeroRange makes length bytes at off read as zeros and keeps their space.
func ZeroRange(fd int, off, length int64) error {
	const mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	return wrap("zero range", retry(func() error { return unix.Fallocate(fd, mode, off, length) }))
}

// DirectAlign is what direct I/O on the file asks of buffers and of offsets and
// lengths, in bytes (statx, STATX_DIOALIGN, since 6.1). known is false where the
// file system does not say; both are zero where it has no direct I/O for the
// file.
func DirectAlign(fd int) (memory, offset int, known bool, err error) {
	var st unix.Statx_t
	err = retry(func() error { return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st) })
	if err != nil {
		return 0, 0, false, wrap("statx", err)
	}
	known = st.Mask&unix.STATX_DIOALIGN != 0
	return int(st.Dio_mem_align), int(st.Dio_offset_align), known, nil
}

// File systems that answer for the disk of somebody else (magic numbers of
// include/uapi/linux/magic.h).
const (
	fsNFS     = 0x6969
	fsFUSE    = 0x65735546
	fsOverlay = 0x794c7630
	fsCIFS    = 0xff534d42
	fsSMB2    = 0xfe534d42
	fsCeph    = 0x00c36400
	fs9P      = 0x01021997
)

var indirect = map[uint32]string{
	fsNFS: "NFS", fsFUSE: "FUSE", fsOverlay: "overlay", fsCIFS: "CIFS", fsSMB2: "SMB", fsCeph: "Ceph", fs9P: "9P",
}

// IndirectFS names the file system if it is one whose flush and locks are
// another's promise (NFS, FUSE, overlay and their like), else "".
func IndirectFS(fd int) (string, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return "", wrap("statfs", err)
	}
	return indirect[uint32(st.Type)], nil
}

// Free is the space, in bytes, that is left for anybody on the file system of an open file.
func Free(fd int) (int64, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return 0, wrap("statfs", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// OnReadOnlyFS says whether an open file lies on a file system that is mounted read-only.
func OnReadOnlyFS(fd int) (bool, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return false, wrap("statfs", err)
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}

// File systems that write to new places (magic numbers: include/uapi/linux/magic.h; ZFS's and
// bcachefs's own).
const (
	fsBtrfs    = 0x9123683e
	fsZFS      = 0x2fc12fc1
	fsBcachefs = 0xca451a4e
)

// CopiesOnWrite says whether the file system of an open file writes to new places, so that what has
// its space may need more to be written again.
func CopiesOnWrite(fd int) (bool, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return false, wrap("statfs", err)
	}
	kind := uint32(st.Type)
	return kind == fsBtrfs || kind == fsZFS || kind == fsBcachefs, nil
}

// fsUUID is struct fsuuid2 of include/uapi/linux/fs.h.
type fsUUID struct {
	length uint8
	uuid   [16]uint8
}

// fsIocGetFSUUID is FS_IOC_GETFSUUID, _IOR(0x15, 0, struct fsuuid2), since 6.9.
const fsIocGetFSUUID = 0x80111500

// FSID identifies the file system that an open file lies on: its UUID where
// the kernel tells it, else statfs's f_fsid, which some file systems derive
// from the device number.
func FSID(fd int) ([]byte, error) {
	var u fsUUID
	err := ioctl(fd, fsIocGetFSUUID, unsafe.Pointer(&u))
	if err == nil && u.length > 0 && int(u.length) <= len(u.uuid) {
		return u.uuid[:u.length:u.length], nil
	}
	if err != nil && !errors.Is(err, syscall.ENOTTY) && !errors.Is(err, syscall.EOPNOTSUPP) {
		return nil, wrap("ioctl FS_IOC_GETFSUUID", err)
	}
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return nil, wrap("statfs", err)
	}
	id := make([]byte, 0, 8)
	for _, v := range st.Fsid.Val {
		id = append(id, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
	}
	return id, nil
}
