package blockdev

import (
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Role says what a device is for.
type Role uint8

// The roles.
const (
	Source Role = iota
	Dest
	Metadata
)

// String is the role in messages.
func (r Role) String() string { return [...]string{"source", "destination", "metadata"}[r] }

// code is the exit code of a failure of this role.
func (r Role) code() int { return [...]int{exit.Source, exit.Dest, exit.Metadata}[r] }

// Device is an open source, destination or metadata device with its lock.
type Device struct {
	file    *os.File
	path    string
	role    Role
	stat    sys.Stat
	size    int64 // bytes
	logical int   // bytes
	physic  int   // bytes, physical block
	align   int   // bytes, what direct I/O asks of offsets, lengths and buffers
	memory  int   // bytes, what it asks of buffers
	direct  bool
	created bool
	unnamed bool   // created, and not under its name yet
	begun   string // the name that it has until then, "" for none
	grown   bool   // an empty file that was there got its size
	dry     bool   // Options.DryRun
	closed  bool
	warned  []string
	id      *string // once it was asked for: what is open stays what it is

	was *present // of a source file

	// Of a source that is a block device, see noteBlock.
	diskSeq uint64
	behind  []behindFile
}

// File is the one description of the device. It stays valid until Close; a
// ring that uses its descriptor keeps it reachable.
func (d *Device) File() *os.File { return d.file }

// Path is the name under which the device was opened, for messages only.
func (d *Device) Path() string { return d.path }

// Number is the number of a block device.
func (d *Device) Number() uint64 { return d.stat.Rdev }

// Size is the size in bytes at open.
func (d *Device) Size() int64 { return d.size }

// IsBlock says whether it is a block device, not a file.
func (d *Device) IsBlock() bool { return d.stat.IsBlock() }

// LogicalBlock is the smallest unit of I/O in bytes.
func (d *Device) LogicalBlock() int { return d.logical }

// PhysicalBlock is the unit that is written without being read first, in bytes.
func (d *Device) PhysicalBlock() int { return d.physic }

// MaxDiscard is the largest discard that the device takes at a time, in bytes;
// 0 if it takes none. Of a file any part can be given back.
func (d *Device) MaxDiscard() int64 {
	if !d.IsBlock() {
		return math.MaxInt64
	}
	return queue(host.dir(d.stat.Rdev), "discard_max_bytes")
}

// DiscardUnit is what the device gives up space in, in bytes (its discard granularity); 0 if it does not say.
func (d *Device) DiscardUnit() int64 { return queue(host.dir(d.stat.Rdev), "discard_granularity") }

// SparesZeros says whether zeros need not be written where the device reads as zeros: ZerosUnknown, they must be. Others can
// give up space, take some for zeros that are written to them, as they have no way of their own to write zeroes, and
// what they have given up goes on reading as zeros. A file gives up what is punched out.
func (d *Device) SparesZeros() Zeros {
	if !d.IsBlock() || d.MaxDiscard() == 0 || queue(host.dir(d.stat.Rdev), "write_zeroes_max_bytes") > 0 {
		return ZerosUnknown
	}
	return host.steadyZeros(d.stat.Rdev, levels)
}

// Depth is how many requests each queue of the device's hardware takes at a time, and how many queues there are; 0 requests:
// any number, as a file, or not known. Of devices that are made of others it is that of the one below that takes the
// fewest: what is above only hands on.
func (d *Device) Depth() (requests, queues int) {
	if !d.IsBlock() {
		return 0, 0
	}
	return host.depth(d.stat.Rdev, levels)
}

// MaxRequest is the most that the device is asked for at a time, in bytes: the kernel cuts what is larger. 0: anything, as
// a file, or not known.
func (d *Device) MaxRequest() int64 {
	if !d.IsBlock() {
		return 0
	}
	return queue(host.dir(d.stat.Rdev), "max_sectors_kb") << 10
}

// DMAAlign is the alignment of memory that direct I/O asks for, in bytes; 1 for buffered I/O.
func (d *Device) DMAAlign() int {
	switch {
	case d.IsBlock():
		return int(queue(host.dir(d.stat.Rdev), "dma_alignment")) + 1
	case d.direct:
		return d.memory
	}
	return 1
}

// Direct says whether I/O bypasses the page cache.
func (d *Device) Direct() bool { return d.direct }

// Created says whether Open made the file.
func (d *Device) Created() bool { return d.created }

// Sparse is how much of a file that was there, in bytes, has no space on its file system yet.
func (d *Device) Sparse() int64 {
	if d.IsBlock() || d.created || d.grown {
		return 0
	}
	return max(0, d.size-d.stat.Space)
}

// Warnings are what the user should know and what force overrode.
func (d *Device) Warnings() []string { return d.warned }

// Current says of a block device that it is still there and that its path leads to it, so that there is no other to
// open. A file can always be opened once more.
func (d *Device) Current() bool {
	st, err := sys.StatPath(d.path)
	return err == nil && d.IsBlock() && st.IsBlock() && st.Rdev == d.stat.Rdev && d.Present()
}

// Present says that a block device has the size that it was opened with. One that was removed has none (del_gendisk,
// block/genhd.c, 6.12): then reads find its end, and writes no space.
func (d *Device) Present() bool {
	if !d.IsBlock() {
		return true
	}
	size, err := sys.BlockSize64(d.fd())
	return err == nil && size == d.size
}

// Shorter says that the device has become shorter than it was at open: what was written behind its end is lost. nil: it has
// not, or is not there to be asked.
func (d *Device) Shorter() error {
	size, err := d.sizeNow()
	if err != nil || size >= d.size || d.IsBlock() && size == 0 { // 0: it was removed, which its errors tell
		return nil
	}
	return d.fail("find the end of", fmt.Errorf("it has %d bytes, and had %d when it was opened", size, d.size), "")
}

func (d *Device) sizeNow() (int64, error) {
	if d.IsBlock() {
		return sys.BlockSize64(d.fd())
	}
	st, err := sys.Fstat(d.fd())
	return st.Size, err
}

// Flush makes every write through the description that ended before it durable.
// It blocks.
func (d *Device) Flush() error {
	if d.dry {
		return nil
	}
	return sys.Fdatasync(d.fd())
}

// ReadAt fills p from off, through the one description. What direct I/O asks for (Align) is the caller's care. It blocks.
func (d *Device) ReadAt(p []byte, off int64) error { return sys.ReadFullAt(d.fd(), p, off) }

// DropCache gives up what the page cache holds of the device. Direct writes look for it there as long as there is anything
// of the whole device (filemap_invalidate_pages, mm/filemap.c, 6.18), and whoever made or probed it has left something.
// It saves time and is not needed: an error is none.
func (d *Device) DropCache() { _ = sys.DropCache(d.fd()) }

// IsOpen says whether the description is there: it is not after Close, until Retake.
func (d *Device) IsOpen() bool { return !d.closed }

// Close gives the description and with it the lock back. A second one does nothing.
func (d *Device) Close() error {
	if d.closed {
		return nil
	}
	d.closed = true
	for _, b := range d.behind {
		b.file.Close() // only looked at
	}
	if err := d.file.Close(); err != nil {
		return d.fail("close", err, "")
	}
	return nil
}

// Retake opens a block device again that was closed for somebody else to take over, who has not: with the lock, as Open
// did. Nothing is to be under way on the description that was closed.
func (d *Device) Retake() error {
	again, err := open(d.role, d.path, blockFlags(d.role, Options{}))
	if err != nil {
		return err
	}
	if again.stat.Rdev != d.stat.Rdev || !d.IsBlock() {
		return errors.Join(again.fail("open", errors.New("its path leads to another device by now"), "Lead it back."), again.Close())
	}
	d.file, d.closed = again.file, false
	return nil
}

// Remove unlinks a file that Open made, for the undo of a start that failed.
// It leaves alone whatever was there before, and a path that names another file
// by now.
func (d *Device) Remove() error {
	switch {
	case d.grown && !d.dry:
		if err := d.file.Truncate(0); err != nil {
			return d.fail("empty", err, "")
		}
	case d.begun != "":
		return file.Remove(d.begun)
	case d.created:
		return d.unlink()
	}
	return nil
}

// unlink removes a file whose path still names it.
func (d *Device) unlink() error {
	st, err := sys.StatPath(d.path)
	if err != nil || st.Dev != d.stat.Dev || st.Inode != d.stat.Inode {
		return nil
	}
	if err := file.Remove(d.path); err != nil {
		return d.fail("remove", err, "")
	}
	return nil
}

// fd is the descriptor for calls of package sys; the caller holds d, and d
// the file.
func (d *Device) fd() int { return int(d.file.Fd()) }

// fail is an error of this device with the exit code of its role.
func (d *Device) fail(verb string, cause error, next string) error {
	return failure(d.role, d.role.code(), verb, d.path, cause, next)
}

// refuse is an error of this device that force overrides.
func (d *Device) refuse(verb string, cause error, next string) error {
	return failure(d.role, exit.Refused, verb, d.path, cause, next)
}

func failure(role Role, code int, verb, path string, cause error, next string) error {
	return &exit.Error{Code: code, Doing: fmt.Sprintf("%s the %s", verb, role), Object: path, Cause: cause, Next: next}
}
