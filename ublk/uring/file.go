package uring

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is an open file or block device as backend I/O takes it. Several loops may use one. It keeps
// the os.File reachable, so that its descriptor stays open; who closes the os.File sees to it that
// no I/O is in flight.
type File struct {
	f      *os.File
	fd     int
	block  bool // a block device
	socket bool // what a Stream is made of

	// What the file's driver or file system was found not to have, so that it is not asked again.
	noPunch     atomic.Bool
	noZeroRange atomic.Bool
}

// NewFile wraps f.
func NewFile(f *os.File) (*File, error) {
	var st unix.Stat_t
	fd := int(f.Fd())
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	kind := st.Mode & unix.S_IFMT
	return &File{f: f, fd: fd, block: kind == unix.S_IFBLK, socket: kind == unix.S_IFSOCK}, nil
}

// Name is the name that the file was opened with.
func (f *File) Name() string { return f.f.Name() }
