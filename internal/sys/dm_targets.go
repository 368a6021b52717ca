package sys

import (
	"encoding/binary"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DMTarget is one line of a device-mapper table, in sectors of 512 bytes.
type DMTarget struct {
	Start, Sectors uint64
	Type, Params   string
}

// Load opens the devices that a table leads to and makes it the inactive one, in place of one that
// is there. EBUSY: somebody has such a device open exclusively.
func (c *DM) Load(name string, table []DMTarget) error {
	b := tableCall(name, table)
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.file.Fd(), unix.DM_TABLE_LOAD, uintptr(unsafe.Pointer(&b[0])))
		runtime.KeepAlive(c.file)
		switch errno {
		case 0:
			return nil
		case syscall.EINTR:
		default:
			return wrap("ioctl DM_TABLE_LOAD", errno)
		}
	}
}

// tableCall lays a table out behind a header, each target with its parameters and a zero byte
// behind them. Here next is where the following one begins, from the beginning of the one that says
// it (next_target, drivers/md/dm-ioctl.c, 6.12), a multiple of 8.
func tableCall(name string, table []DMTarget) []uint64 {
	length := func(t DMTarget) int { return (unix.SizeofDmTargetSpec + len(t.Params) + 1 + 7) / 8 * 8 }
	size := unix.SizeofDmIoctl
	for _, t := range table {
		size += length(t)
	}
	b := make([]uint64, size/8) // aligned as the header is
	data := unsafe.Slice((*byte)(unsafe.Pointer(&b[0])), size)
	head := (*unix.DmIoctl)(unsafe.Pointer(&b[0]))
	*head = newDMCall(name).head
	head.Data_size, head.Target_count = uint32(size), uint32(len(table))
	for at, i := unix.SizeofDmIoctl, 0; i < len(table); i++ {
		t := table[i]
		spec := (*unix.DmTargetSpec)(unsafe.Pointer(&data[at]))
		spec.Sector_start, spec.Length, spec.Next = t.Start, t.Sectors, uint32(length(t))
		copy(spec.Target_type[:len(spec.Target_type)-1], t.Type)
		copy(data[at+unix.SizeofDmTargetSpec:], t.Params)
		at += length(t)
	}
	return b
}

// Room for a table: what most have, and the most that is asked for.
const (
	dmTargetsRoom = 64 << 10
	dmTargetsMost = 16 << 20
)

// Targets are the lines of the live table of the device with this number. A device without a table
// has none.
func (c *DM) Targets(dev uint64) ([]DMTarget, error) {
	for size := dmTargetsRoom; ; size *= 4 {
		b := make([]uint64, size/8) // aligned as the header is
		head := (*unix.DmIoctl)(unsafe.Pointer(&b[0]))
		head.Version = [3]uint32{4, 0, 0}
		head.Data_size, head.Data_start = uint32(size), unix.SizeofDmIoctl
		head.Dev, head.Flags = dev, unix.DM_STATUS_TABLE_FLAG
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.file.Fd(), unix.DM_TABLE_STATUS, uintptr(unsafe.Pointer(head)))
		runtime.KeepAlive(c.file)
		switch {
		case errno == syscall.EINTR:
			size /= 4
		case errno != 0:
			return nil, wrap("ioctl DM_TABLE_STATUS", errno)
		case head.Flags&unix.DM_BUFFER_FULL_FLAG == 0:
			data := unsafe.Slice((*byte)(unsafe.Pointer(head)), size)[head.Data_start:]
			return parseTargets(data, int(head.Target_count)), nil
		case size >= dmTargetsMost:
			return nil, wrap("ioctl DM_TABLE_STATUS", syscall.E2BIG)
		}
	}
}

// parseTargets reads the answer of DM_TABLE_STATUS. Each target is a struct dm_target_spec with a
// text behind it:
//
//	__u64 sector_start; __u64 length; __s32 status; __u32 next; char target_type[16];
//
// next is where the following one begins, from the beginning of the first (retrieve_status,
// drivers/md/dm-ioctl.c, 6.12).
func parseTargets(data []byte, n int) (all []DMTarget) {
	const start, length, next, kind, params = 0, 8, 20, 24, unix.SizeofDmTargetSpec
	for at := 0; len(all) < n && at >= 0 && at+params <= len(data); {
		b := data[at:]
		all = append(all, DMTarget{
			Start: binary.NativeEndian.Uint64(b[start:]), Sectors: binary.NativeEndian.Uint64(b[length:]),
			Type: unix.ByteSliceToString(b[kind:params]), Params: unix.ByteSliceToString(b[params:]),
		})
		at = int(binary.NativeEndian.Uint32(b[next:]))
	}
	return all
}
