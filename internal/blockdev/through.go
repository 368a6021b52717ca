package blockdev

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Way is a block device that leads to all of another one, through which that is opened: the other
// one is claimed by the kernel as long as the way is there, and so for nobody else. All I/O, and
// the lock, go through the way. What the device is, its identity, its size and its limits, is asked
// of itself.
type Way interface {
	// There is the path of the way that already leads to the block device of that number and size,
	// in bytes; "": there is none, and nothing of the clone's has claimed the device.
	There(number uint64, size int64) (path string, err error)
	// Lay makes a way to the block device, which nobody has claimed now.
	Lay(number uint64, size int64) (path string, err error)
	// Own are the numbers of the devices of the clone that lead to the block device: who uses them
	// is no stranger to it.
	Own() []uint64
}

// openVia opens a block device through a way that is there.
func openVia(role Role, path, way string, o Options) (*Device, error) {
	d, err := open(role, path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	if err := d.enter(way, o); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// enter has all I/O of an open block device go through the way from now on.
func (d *Device) enter(way string, o Options) error {
	f, err := sys.Open(way, blockFlags(d.role, o), 0)
	switch {
	case isBusy(err):
		return busy(d.role, "open", way, err)
	case err != nil:
		return d.fail("open", err, openNext(d.role, err))
	}
	d.self, d.file = d.file, f
	return nil
}

// goThrough makes a way to a block device that is open and locked, and goes through it. For a
// moment nobody has it: whoever takes it then is told as in Open.
func (d *Device) goThrough(w Way) error {
	again, err := sys.Open(d.path, os.O_RDONLY, 0)
	if err != nil {
		return d.fail("open", err, openNext(d.role, err))
	}
	held := d.file
	d.file = again
	if err := held.Close(); err != nil {
		return d.fail("close", err, "")
	}
	if st, err := sys.Fstat(d.fd()); err != nil || st.Rdev != d.stat.Rdev {
		return d.fail("open", errors.New("it changed while it was opened"), "Try again.")
	}
	way, err := w.Lay(d.stat.Rdev, d.size)
	switch {
	case isBusy(err):
		return busy(d.role, "open", d.path, err)
	case err != nil:
		return err
	}
	return d.enter(way, Options{})
}

// WrittenBesides grows when others write to a device that is reached by a way, as they can. Of
// others it is 0.
func (d *Device) WrittenBesides() int64 {
	if d.way == nil {
		return 0
	}
	const sectors = 6 // place of the sectors written (Documentation/block/stat.rst)
	fields := strings.Fields(text(host.dir(d.stat.Rdev), "stat"))
	if len(fields) <= sectors {
		return 0
	}
	n, _ := strconv.ParseInt(fields[sectors], 10, 64)
	return n * sector
}

// ask is the descriptor for questions about the device itself.
func (o *opened) ask() int {
	if o.self != nil {
		return int(o.self.Fd())
	}
	return o.fd()
}

// closeSelf drops what the page cache holds of a device that was reached through another one: it
// may have been read before, and nothing that went the other way has changed it.
func (o *opened) closeSelf() error {
	if o.self == nil {
		return nil
	}
	_ = sys.DropCache(int(o.self.Fd()))
	return o.self.Close()
}
