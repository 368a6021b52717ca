package blockdev

import (
	"fmt"
	"math"

	"github.com/ublk-clone/ublk-clone/internal/exit"
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

// node is a device or file by its path and role, and what the kernel says of it to whoever asks. It
// need not be open, and nothing here reads it.
type node struct {
	path string
	role Role
	stat sys.Stat
	size int64 // bytes
}

// Path is the name under which the device was opened, for messages only.
func (n *node) Path() string { return n.path }

// Stat is what the path led to when it was opened.
func (n *node) Stat() sys.Stat { return n.stat }

// Number is the number of a block device.
func (n *node) Number() uint64 { return n.stat.Rdev }

// Size is the size in bytes at open.
func (n *node) Size() int64 { return n.size }

// IsBlock says whether it is a block device, not a file.
func (n *node) IsBlock() bool { return n.stat.IsBlock() }

// Birth is when the file was made, or the one behind a loop device, in nanoseconds since 1970; 0
// where nobody knows. It tells a file from a later one with the same number.
func (n *node) Birth() int64 {
	if !n.IsBlock() {
		return n.stat.Birth
	}
	if dir := host.dir(n.stat.Rdev); dir != "" {
		if st, err := host.backing(dir); err == nil {
			return st.Birth
		}
	}
	return 0
}

// Instance looks at what the kernel says, not at the device.
func (n *node) Instance() Instance { return host.instance(n.stat) }

// MaxDiscard is the largest discard that the device takes at a time, in bytes;
// 0 if it takes none. Of a file any part can be given back.
func (n *node) MaxDiscard() int64 {
	if !n.IsBlock() {
		return math.MaxInt64
	}
	return queue(host.dir(n.stat.Rdev), "discard_max_bytes")
}

// DiscardUnit is the device's discard granularity, in bytes; 0 if it does not say.
func (n *node) DiscardUnit() int64 { return queue(host.dir(n.stat.Rdev), "discard_granularity") }

// SparesZeros says whether zeros need not be written where the device reads as zeros: ZerosUnknown,
// they must be. Others can give up space, take some for zeros that are written to them, as they
// have no way of their own to write zeroes, and what they have given up goes on reading as zeros. A
// file gives up what is punched out.
func (n *node) SparesZeros() Zeros {
	if !n.IsBlock() || n.MaxDiscard() == 0 || queue(host.dir(n.stat.Rdev), "write_zeroes_max_bytes") > 0 {
		return ZerosUnknown
	}
	return host.steadyZeros(n.stat.Rdev, levels)
}

// Depth is how many requests each queue of the device's hardware takes at a time, and how many
// queues there are; 0 requests: any number, as a file, or not known. Of devices that are made of
// others it is that of the one below that takes the fewest: what is above only hands on.
func (n *node) Depth() (requests, queues int) {
	if !n.IsBlock() {
		return 0, 0
	}
	return host.depth(n.stat.Rdev, levels)
}

// MaxRequest is the most that the device is asked for at a time, in bytes: the kernel cuts what is
// larger. 0: anything, as a file, or not known.
func (n *node) MaxRequest() int64 {
	if !n.IsBlock() {
		return 0
	}
	return queue(host.dir(n.stat.Rdev), "max_sectors_kb") << 10
}

// fail is an error of this device with the exit code of its role.
func (n *node) fail(verb string, cause error, next string) error {
	return failure(n.role, n.role.code(), verb, n.path, cause, next)
}

// refuse is an error of this device that force overrides.
func (n *node) refuse(verb string, cause error, next string) error {
	return failure(n.role, exit.Refused, verb, n.path, cause, next)
}

func failure(role Role, code int, verb, path string, cause error, next string) error {
	return &exit.Error{Code: code, Doing: fmt.Sprintf("%s the %s", verb, role), Object: path, Cause: cause, Next: next}
}
