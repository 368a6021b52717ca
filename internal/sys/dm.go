package sys

import (
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// This file speaks to device-mapper (include/uapi/linux/dm-ioctl.h, 6.12 to 7.3). A device has a
// name, a UUID, and two places for tables:
//
//	Create --> no table --Load--> inactive --Resume--> live (what was live before is gone)
//	                                  |
//	                                Clear
//
//	Suspend: requests from now on wait in device-mapper, those before have been answered
//	Resume:  an inactive table becomes the live one, and what waits goes through it
//
// Loading a table opens the devices that it leads to, exclusively; they are closed with it. So
// there is no moment at which two tables can both be given up: what fails leaves the live one.
//
// It is done by ioctl, not by dmsetup: while a device is suspended, a program that lies on it
// cannot be read.

// DM is an open control node of device-mapper.
type DM struct{ file *os.File }

// dmControl is there when the module dm_mod is loaded (and before where systemd makes static nodes,
// which loads it).
const dmControl = "/dev/mapper/control"

// OpenDM opens the control node. ENOENT or ENODEV: there is no device-mapper.
func OpenDM() (*DM, error) {
	f, err := Open(dmControl, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &DM{file: f}, nil
}

// Close closes the control node.
func (c *DM) Close() error { return c.file.Close() }

// DMDevice is a device as device-mapper tells of it.
type DMDevice struct {
	Name, UUID string
	Dev        uint64 // its number
	Users      int    // how often it is open
	Live       bool   // it has a live table
	Inactive   bool   // a table is loaded that is not live yet
	Suspended  bool
}

// dmCall is what an ioctl reads and fills that is about a device and no table: a header.
type dmCall struct{ head unix.DmIoctl }

// The kernel's size: 312 bytes.
var _ [unix.SizeofDmIoctl]byte = [unsafe.Sizeof(dmCall{})]byte{}

// Flags for udev's rules, of libdevmapper (libdm/libdevmapper.h). dmPrimary says that an event is
// one of which device-mapper's own program has told, with nobody who waits for the rules to have
// run: without it they take the event for a stray one. dmPrivate says of a device that nobody is to
// look into it or to make links to it.
const (
	dmPrimary = 0x40 << 16                        // DM_UDEV_PRIMARY_SOURCE_FLAG
	dmPrivate = (0x01 | 0x02 | 0x04 | 0x08) << 16 // DM_UDEV_DISABLE_{DM,SUBSYSTEM,DISK,OTHER}_RULES_FLAG
)

// Of version 4.0.0 of the interface is all that is used here.
func newDMCall(name string) *dmCall {
	call := &dmCall{}
	call.head.Version = [3]uint32{4, 0, 0}
	call.head.Data_size = uint32(unsafe.Sizeof(*call))
	call.head.Data_start = uint32(unsafe.Sizeof(*call))
	copy(call.head.Name[:len(call.head.Name)-1], name)
	return call
}

// do is one ioctl, which a signal may interrupt.
func (c *DM) do(request uint, call *dmCall) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.file.Fd(), uintptr(request), uintptr(unsafe.Pointer(call)))
	runtime.KeepAlive(c.file)
	return errno
}

// repeat does an ioctl again while a signal interrupts it.
func (c *DM) repeat(verb string, request uint, call *dmCall) error {
	for {
		switch errno := c.do(request, call); errno {
		case 0:
			return nil
		case syscall.EINTR:
		default:
			return wrap(verb, errno)
		}
	}
}

func (call *dmCall) device() DMDevice {
	h := &call.head
	return DMDevice{
		Name: unix.ByteSliceToString(h.Name[:]), UUID: unix.ByteSliceToString(h.Uuid[:]), Dev: h.Dev, Users: int(h.Open_count),
		Live: h.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0, Inactive: h.Flags&unix.DM_INACTIVE_PRESENT_FLAG != 0,
		Suspended: h.Flags&unix.DM_SUSPEND_FLAG != 0,
	}
}

// Status looks at a device; ENXIO if there is none of that name.
func (c *DM) Status(name string) (DMDevice, error) {
	call := newDMCall(name)
	err := c.repeat("ioctl DM_DEV_STATUS", unix.DM_DEV_STATUS, call)
	return call.device(), err
}

// Create makes a device without a table. EBUSY: there is one of that name or UUID.
func (c *DM) Create(name, uuid string) (DMDevice, error) {
	call := newDMCall(name)
	copy(call.head.Uuid[:len(call.head.Uuid)-1], uuid)
	err := c.repeat("ioctl DM_DEV_CREATE", unix.DM_DEV_CREATE, call)
	return call.device(), err
}

// Clear gives up the inactive table, if there is one.
func (c *DM) Clear(name string) error {
	return c.repeat("ioctl DM_TABLE_CLEAR", unix.DM_TABLE_CLEAR, newDMCall(name))
}

// Resume makes the inactive table the live one, if there is one, and lets the device go on. A
// resume of one that is not suspended and has nothing inactive does nothing. Of a private device
// udev's rules make nothing known.
func (c *DM) Resume(name string, private bool) error {
	call := newDMCall(name)
	call.head.Flags, call.head.Event_nr = unix.DM_SKIP_LOCKFS_FLAG, dmPrimary
	if private {
		call.head.Event_nr |= dmPrivate
	}
	return c.repeat("ioctl DM_DEV_SUSPEND (resume)", unix.DM_DEV_SUSPEND, call)
}

// Remove removes a device. EBUSY: somebody has it open. Deferred, it goes when he has closed it.
func (c *DM) Remove(name string, deferred bool) error {
	call := newDMCall(name)
	call.head.Event_nr = dmPrimary
	if deferred {
		call.head.Flags = unix.DM_DEFERRED_REMOVE
	}
	return c.repeat("ioctl DM_DEV_REMOVE", unix.DM_DEV_REMOVE, call)
}

// interruptPause is between two attempts to interrupt a Suspend.
const interruptPause = 50 * time.Millisecond

// Suspend makes requests to the device wait, and waits until those before have been answered. A
// file system on it is not frozen. ETIMEDOUT: they were not in time, and the device goes on as
// before; the kernel is told to give up by a signal, which it may take longer to look at while it
// cannot hand its requests down at all.
func (c *DM) Suspend(name string, limit time.Duration) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	call := newDMCall(name)
	call.head.Flags = unix.DM_SUSPEND_FLAG | unix.DM_SKIP_LOCKFS_FLAG
	var late atomic.Bool
	done, left, thread := make(chan struct{}), make(chan struct{}), unix.Gettid()
	guard.Go("limit of a suspend", func() {
		defer close(left)
		call.interrupt(thread, limit, &late, done)
	})
	errno := syscall.EINTR
	for first := true; first || errno == syscall.EINTR && !late.Load(); first = false {
		errno = c.do(unix.DM_DEV_SUSPEND, call)
	}
	close(done)
	<-left // no signal comes later
	switch {
	case errno == 0:
		return nil
	case late.Load():
		errno = syscall.ETIMEDOUT
	}
	return wrap("ioctl DM_DEV_SUSPEND", errno)
}

// interrupt sends the thread a signal that does nothing, again and again from limit on, until done.
// From 6.11 on (dm_wait_for_bios_completion, drivers/md/dm.c) the kernel begins an ioctl again that
// was interrupted so, by itself, and reads what it is asked anew: by then that is about no device,
// which is ENXIO.
func (call *dmCall) interrupt(thread int, limit time.Duration, late *atomic.Bool, done chan struct{}) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case <-done:
			return
		case <-timer.C:
		}
		late.Store(true)
		call.head.Name[0] = 0
		_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG) // which Go's own threads send each other
		timer.Reset(interruptPause)
	}
}
