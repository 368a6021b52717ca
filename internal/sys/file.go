package sys

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Open opens path close-on-exec and never waits: O_NONBLOCK keeps a FIFO or a
// device without medium from holding the caller, and has no effect on the I/O
// of files and block devices.
func Open(path string, flags int, perm os.FileMode) (*os.File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_LARGEFILE, uint32(perm.Perm()))
		return err
	})
	if err != nil {
		return nil, wrap("open", err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, wrap("clear O_NONBLOCK", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Dup is another descriptor of an open description.
func Dup(fd int, name string) (*os.File, error) {
	again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, wrap("duplicate descriptor", err)
	}
	return os.NewFile(uintptr(again), name), nil
}

// OpenNameless is a flag of Open: path is a directory, and the file has no name in it and is gone
// when it is closed.
const OpenNameless = unix.O_TMPFILE

// Name gives a file that was opened with OpenNameless its name. EEXIST says that there is another
// of that name.
func Name(fd int, path string) error {
	from := fmt.Sprintf("/proc/self/fd/%d", fd)
	return wrap("link", retry(func() error { return unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW) }))
}

// RenameNew renames a file. EEXIST says that there is another of the new name: it stays.
func RenameNew(from, to string) error {
	err := retry(func() error { return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE) })
	if err == unix.EINVAL { // the file system cannot, as NFS
		if err = retry(func() error { return unix.Link(from, to) }); err == nil {
			err = unix.Unlink(from)
		}
	}
	return wrap("rename", err)
}

// SetDirect switches O_DIRECT of an open description on or off. EINVAL says
// that the file system has no direct I/O.
func SetDirect(fd int, on bool) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return wrap("get descriptor flags", err)
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
	return wrap("set O_DIRECT", err)
}

// IsDirect says whether the description is open with O_DIRECT.
func IsDirect(fd int) (bool, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return flags&unix.O_DIRECT != 0, wrap("get descriptor flags", err)
}

// ReadFullAt reads len(p) bytes at off and finishes short reads. A file that
// ends earlier is io.ErrUnexpectedEOF.
func ReadFullAt(fd int, p []byte, off int64) error {
	return whole("read", p, off, func(p []byte, off int64) (int, error) { return unix.Pread(fd, p, off) })
}

// WriteFullAt writes all of p at off and finishes short writes.
func WriteFullAt(fd int, p []byte, off int64) error {
	return whole("write", p, off, func(p []byte, off int64) (int, error) { return unix.Pwrite(fd, p, off) })
}

// whole repeats one transfer until p is done; the error names the offset at
// which it stopped.
func whole(verb string, p []byte, off int64, transfer func([]byte, int64) (int, error)) error {
	for len(p) > 0 {
		n, err := transfer(p, off)
		if err == syscall.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("%s %d bytes at offset %d: %w", verb, len(p), off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Fdatasync makes the data of the description durable.
func Fdatasync(fd int) error {
	return wrap("fdatasync", retry(func() error { return unix.Fdatasync(fd) }))
}

// DropCache gives up what the page cache holds of the file and has been written.
func DropCache(fd int) error {
	return wrap("fadvise", unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
}

// FlockExclusive takes the exclusive flock of the description, or fails at once
// with EWOULDBLOCK.
func FlockExclusive(fd int) error { return flock(fd, unix.LOCK_EX) }

// FlockWait takes the exclusive flock of the description and waits for it.
func FlockWait(fd int) error {
	return wrap("lock", retry(func() error { return unix.Flock(fd, unix.LOCK_EX) }))
}

// LockRecord takes the exclusive record lock of a whole file for the open description (fcntl(2),
// F_OFD_SETLK), or fails at once with EAGAIN.
func LockRecord(fd int) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	return wrap("lock", unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock))
}

// RecordLocked says whether another description has a record lock of the file. It takes none.
func RecordLocked(fd int) (bool, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock)
	return lock.Type != unix.F_UNLCK, wrap("ask for a lock", err)
}

// FlockShared takes a shared flock of the description, or fails at once with
// EWOULDBLOCK.
func FlockShared(fd int) error { return flock(fd, unix.LOCK_SH) }

func flock(fd, how int) error {
	return wrap("lock", retry(func() error { return unix.Flock(fd, how|unix.LOCK_NB) }))
}

// Stat is what blockdev asks about a file, a block device or a descriptor.
type Stat struct {
	Mode  uint32 // st_mode
	UID   uint32 // owner
	Dev   uint64 // device that the file lies on
	Rdev  uint64 // device that a device node stands for
	Inode uint64
	Size  int64 // bytes
	Space int64 // bytes that it takes on its file system
	Mtime int64 // nanoseconds since 1970
	Ctime int64 // when the inode changed last, nanoseconds since 1970
	Links uint32
	Birth int64 // when it was made, nanoseconds since 1970; 0 where the file system does not say
}

// BlockStat is of a block device of which only the number is known.
func BlockStat(rdev uint64) Stat { return Stat{Mode: unix.S_IFBLK, Rdev: rdev} }

// IsBlock and IsRegular tell the kinds of file that can be cloned.
func (s Stat) IsBlock() bool   { return s.Mode&unix.S_IFMT == unix.S_IFBLK }
func (s Stat) IsRegular() bool { return s.Mode&unix.S_IFMT == unix.S_IFREG }

// Fstat describes an open file.
func Fstat(fd int) (Stat, error) { return statx(fd, "", unix.AT_EMPTY_PATH) }

// FstatNow is Fstat for who asks again and again: it does not wait for the server of a network file
// system, and allocates nothing.
func FstatNow(fd int) (Stat, error) {
	var st unix.Statx_t
	const flags = unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&emptyPath)), flags,
			unix.STATX_BASIC_STATS, uintptr(unsafe.Pointer(&st)), 0)
		switch errno {
		case 0:
			return statOf(&st), nil
		case unix.EINTR:
		default:
			return Stat{}, wrap("stat", errno)
		}
	}
}

// emptyPath is the empty string of C.
var emptyPath byte

// StatPath describes what path names, symbolic links followed, from what the
// kernel has at hand: it does not wait for the server of a network file system
// (AT_STATX_DONT_SYNC).
func StatPath(path string) (Stat, error) { return statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC) }

func statx(dir int, path string, flags int) (Stat, error) {
	var st unix.Statx_t
	err := retry(func() error {
		return unix.Statx(dir, path, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	})
	return statOf(&st), wrap("stat", err)
}

func statOf(st *unix.Statx_t) Stat {
	return Stat{
		Mode: uint32(st.Mode), UID: st.Uid, Dev: unix.Mkdev(st.Dev_major, st.Dev_minor),
		Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor), Inode: st.Ino, Links: st.Nlink,
		Size: int64(st.Size), Space: int64(st.Blocks) * 512, Mtime: nanoseconds(st.Mtime), Ctime: nanoseconds(st.Ctime), Birth: nanoseconds(st.Btime),
	}
}

func nanoseconds(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }

// Major and Minor split a device number; Mkdev joins one.
func Major(dev uint64) uint32                { return unix.Major(dev) }
func Minor(dev uint64) uint32                { return unix.Minor(dev) }
func Mkdev(major, minor uint32) (dev uint64) { return unix.Mkdev(major, minor) }
