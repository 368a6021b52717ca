package uring

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// next returns a cleared entry. When the queue is full, what is in it is submitted first.
func (r *Ring) next() (*sqe, error) {
	if r.Pending() == r.sq.entries {
		if err := r.makeRoom(); err != nil {
			return nil, err
		}
	}
	off := (r.sq.prepared & r.sq.mask) * r.sq.stride
	r.sq.prepared++
	s := (*sqe)(unsafe.Pointer(&r.sq.sqes[off]))
	*s = sqe{}
	if r.sq.stride > sqeSize {
		clear(r.sq.sqes[off+sqeSize : off+r.sq.stride])
	}
	return s, nil
}

// makeRoom submits without waiting. EAGAIN and EBUSY are no errors if something was taken all the
// same.
func (r *Ring) makeRoom() error {
	r.publish()
	errno := r.enter(r.Pending(), 0, false)
	switch {
	case r.Pending() < r.sq.entries:
		return nil
	case errno == 0, errno == unix.EAGAIN, errno == unix.EBUSY, errno == unix.EINTR:
		return ErrFull
	}
	return errno
}

// address is where b begins. b is not in the Go heap (see the package comment), so that the number
// stays right.
func address(b []byte) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
}

// Nop prepares an entry that completes at once with 0.
func (r *Ring) Nop(user uint64) error {
	s, err := r.next()
	if err != nil {
		return err
	}
	s.opcode, s.userData = opNop, user
	return nil
}

// Read prepares a read of d at off with an I/O priority as of ioprio_set(2); 0 is the thread's. The
// completion's result is the number of bytes.
func (r *Ring) Read(fd int, off int64, d Data, priority uint16, user uint64) error {
	s, err := r.next()
	if err != nil {
		return err
	}
	s.opcode, s.userData, s.ioprio = opRead, user, priority
	s.file(fd)
	s.off = uint64(off)
	s.move(d, opReadFixed)
	return nil
}

// Write prepares a write of d at off; rwFlags are RWF_ flags, such as unix.RWF_DSYNC. The
// completion's result is the number of bytes.
func (r *Ring) Write(fd int, off int64, d Data, rwFlags uint32, user uint64) error {
	s, err := r.next()
	if err != nil {
		return err
	}
	s.opcode, s.userData = opWrite, user
	s.file(fd)
	s.off, s.opFlags = uint64(off), rwFlags
	s.move(d, opWriteFixed)
	return nil
}

// Send prepares a send of d to a stream socket; a peer that has closed is EPIPE, and no signal. The
// completion's result is the number of bytes.
func (r *Ring) Send(fd int, d Data, user uint64) error {
	s, err := r.next()
	if err != nil {
		return err
	}
	s.opcode, s.userData, s.opFlags = opSend, user, unix.MSG_NOSIGNAL
	s.file(fd)
	s.len, s.addr = uint32(d.length), d.at
	return nil
}

// fixedFile marks what stands for a descriptor as the ring's registered file.
const fixedFile = 1 << 32

// file says which: a descriptor, or what Ring.fix has answered.
func (s *sqe) file(fd int) {
	s.fd = int32(fd)
	if fd&fixedFile != 0 {
		s.flags = sqeFixedFile
	}
}

// move says where the bytes are. In a registered buffer of a driver's request the address is the
// offset in it (io_buffer_register_bvec, io_uring/rsrc.c, 6.18: imu->ubuf = 0).
func (s *sqe) move(d Data, fixed uint8) {
	s.len, s.addr = uint32(min(d.length, transferMax)), d.at
	if d.registered {
		s.opcode, s.bufIndex = fixed, d.slot
	}
}

// transferMax is the most bytes that the kernel reads or writes at once (MAX_RW_COUNT for 4 KiB
// pages, fs.h).
const transferMax = 0x7ffff000

// Fdatasync prepares a flush of the file's data.
func (r *Ring) Fdatasync(fd int, user uint64) error {
	s, err := r.next()
	if err != nil {
		return err
	}
	s.opcode, s.userData, s.opFlags = opFsync, user, fsyncDatasync
	s.file(fd)
	return nil
}

// Fallocate prepares fallocate(2) with mode on length bytes at off.
func (r *Ring) Fallocate(fd int, mode uint32, off, length int64, user uint64) error {
	s, err := r.next()
	if err != nil {
		return err
	}
	s.opcode, s.userData = opFallocate, user
	s.file(fd)
	s.off, s.addr, s.len = uint64(off), uint64(length), mode
	return nil
}

// cmdDiscard is BLOCK_URING_CMD_DISCARD, _IO(0x12, 0) (include/uapi/linux/blkdev.h, 6.12).
const cmdDiscard = 0x12 << 8

// BlockDiscard prepares a discard of length bytes at off of a block device (since 6.12). Start and
// length are where blkdev_uring_cmd reads them (block/ioctl.c, 6.12). With wait a thread of the
// kernel's issues it, which may wait.
func (r *Ring) BlockDiscard(fd int, off, length int64, wait bool, user uint64) error {
	s, err := r.next()
	if err != nil {
		return err
	}
	s.opcode, s.userData = opURingCmd, user
	s.file(fd)
	if wait {
		s.flags |= sqeAsync
	}
	s.off, s.addr, s.addr3 = cmdDiscard, uint64(off), uint64(length)
	return nil
}

// Command prepares a driver's command op (IORING_OP_URING_CMD); addr is its own field, which some
// commands use; payload is copied into the entry: at most 16 bytes, 80 with BigSQE.
func (r *Ring) Command(fd int, op uint32, addr uint64, payload []byte, user uint64) error {
	if len(payload) > int(r.sq.stride)-cmdOffset {
		return unix.EMSGSIZE
	}
	s, err := r.next()
	if err != nil {
		return err
	}
	s.opcode, s.userData, s.off, s.addr = opURingCmd, user, uint64(op), addr
	s.file(fd)
	copy(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(s), cmdOffset)), r.sq.stride-cmdOffset), payload)
	return nil
}

// Cancel prepares the cancellation of the entry with user data target. Its own completion says 0,
// or ENOENT or EALREADY; the target's comes all the same.
func (r *Ring) Cancel(target, user uint64) error {
	s, err := r.next()
	if err != nil {
		return err
	}
	s.opcode, s.fd, s.userData, s.addr = opAsyncCancel, -1, user, target
	return nil
}

// Flags are the set-up flags that the kernel accepted.
func (r *Ring) Flags() uint32 { return r.flags }

// Entries is the size of the submission queue.
func (r *Ring) Entries() uint32 { return r.sq.entries }
