package blockdev

import (
	"errors"

	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Device is an open source, destination or metadata device with its lock.
type Device struct {
	watched
	units
	making
	dry    bool // Options.DryRun
	way    Way  // Options.Way, nil: it is opened itself
	warned []string
	id     *string // once it was asked for: what is open stays what it is
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

// Sparse is how much of a file that was there, in bytes, has no space on its file system yet.
func (d *Device) Sparse() int64 {
	if d.IsBlock() || d.created || d.grown {
		return 0
	}
	return max(0, d.size-d.stat.Space)
}

// Warnings are what the user should know and what force overrode.
func (d *Device) Warnings() []string { return d.warned }

// Flush makes every write through the description that ended before it durable. It blocks.
func (d *Device) Flush() error {
	if d.dry {
		return nil
	}
	return sys.Fdatasync(d.fd())
}

// Close gives the description and with it the lock back. A second one does nothing.
func (d *Device) Close() error {
	if d.closed {
		return nil
	}
	d.closed = true
	for _, b := range d.behind {
		b.file.Close() // only looked at
	}
	if err := errors.Join(d.file.Close(), d.closeSelf()); err != nil {
		return d.fail("close", err, "")
	}
	return nil
}

// Retake opens a block device again that was closed for somebody else to take over, who has not:
// with the lock, as Open did. Nothing is to be under way on the description that was closed.
func (d *Device) Retake() error {
	again, err := d.openAgain()
	if err != nil {
		return err
	}
	if again.stat.Rdev != d.stat.Rdev || !d.IsBlock() {
		return errors.Join(again.fail("open", errors.New("its path now leads to another device"), "Make it lead to the former device again."), again.Close())
	}
	d.file, d.self, d.closed = again.file, again.self, false
	return nil
}

func (d *Device) openAgain() (*Device, error) {
	if d.way == nil {
		return open(d.role, d.path, blockFlags(d.role, Options{}))
	}
	way, err := d.way.There(d.stat.Rdev, d.size)
	if err == nil && way == "" {
		way, err = d.way.Lay(d.stat.Rdev, d.size)
	}
	if err != nil {
		return nil, err
	}
	return openVia(d.role, d.path, way, Options{})
}

// Remove unlinks a file that Open made, for the undo of a start that failed. It leaves alone
// whatever was there before, and a path that names another file by now.
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
