package uring

import (
	"errors"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lastEntry is what the kernel will be asked last.
func lastEntry(l *Loop) sqe {
	return *(*sqe)(unsafe.Pointer(&l.ring.sq.sqes[((l.ring.sq.prepared-1)&l.ring.sq.mask)*l.ring.sq.stride]))
}

// TestEntries: each operation asks the kernel for what it is, with all of its flags, whatever the
// token was used for before. The rest of a short transfer is asked for with the same flags: a
// durable write is durable to its last byte.
func TestEntries(t *testing.T) {
	const off, length, moved = 8192, 3 << 20, 4096
	data := Memory(mapTestBuffer(t, length))
	zeros, err := zeros()
	must(t, err)
	for _, c := range []struct {
		name  string
		file  func(*File)
		start func(*Port)
		want  sqe
		step  int64 // how far the address goes with a short result, 0: the operation is never short
	}{
		{"read", nil, func(p *Port) { p.Read(0, off, data) }, sqe{opcode: opRead, addr: data.at, len: length}, moved},
		{"read alone", nil, func(p *Port) { p.ReadAlone(0, off, data) },
			sqe{opcode: opRead, addr: data.at, len: length, ioprio: ^uint16(0)}, moved},
		{"read to a registered buffer", nil, func(p *Port) { p.Read(0, off, Registered(5, 512, length)) },
			sqe{opcode: opReadFixed, addr: 512, len: length, bufIndex: 5}, moved},
		{"write", nil, func(p *Port) { p.Write(0, off, data, false) }, sqe{opcode: opWrite, addr: data.at, len: length}, moved},
		{"durable write", nil, func(p *Port) { p.Write(0, off, data, true) },
			sqe{opcode: opWrite, addr: data.at, len: length, opFlags: unix.RWF_DSYNC}, moved},
		{"durable write of a registered buffer", nil, func(p *Port) { p.Write(0, off, Registered(5, 512, length), true) },
			sqe{opcode: opWriteFixed, addr: 512, len: length, bufIndex: 5, opFlags: unix.RWF_DSYNC}, moved},
		{"punch", nil, func(p *Port) { p.Zero(0, off, length, true) },
			sqe{opcode: opFallocate, addr: length, len: unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE}, 0},
		{"zero range", nil, func(p *Port) { p.Zero(0, off, length, false) },
			sqe{opcode: opFallocate, addr: length, len: unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE}, 0},
		{"punch that is not offered", func(f *File) { f.noPunch.Store(true) }, func(p *Port) { p.Zero(0, off, length, true) },
			sqe{opcode: opFallocate, addr: length, len: unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE}, 0},
		{"zeros without unmapping", func(f *File) { f.noZeroRange.Store(true) }, func(p *Port) { p.Zero(0, off, length, false) },
			sqe{opcode: opWrite, addr: address(zeros), len: zeroSize}, -1},
		{"the last zeros", func(f *File) { f.noZeroRange.Store(true) }, func(p *Port) { p.Zero(0, off, 512, false) },
			sqe{opcode: opWrite, addr: address(zeros), len: 512}, 0},
		{"discard of a file", nil, func(p *Port) { p.Discard(0, off, length) },
			sqe{opcode: opFallocate, addr: length, len: unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE}, 0},
		{"discard of a device", func(f *File) { f.block = true }, func(p *Port) { p.Discard(0, off, length) },
			sqe{opcode: opURingCmd, off: cmdDiscard, addr: off, addr3: length}, 0},
		{"flush", nil, func(p *Port) { p.Flush(0) }, sqe{opcode: opFsync, opFlags: fsyncDatasync}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, _ := newTestLoop(t, LoopOptions{Tokens: 1})
			file := newTestFile(t, openTestFile(t, t.TempDir(), 0))
			if c.file != nil {
				c.file(file)
			}
			l.ops[0] = operation{dsync: true, alone: true, given: givenLimit, data: Registered(7, 7, 7), off: 7, length: 7, refused: unix.EIO}
			c.start(l.Open(file, 0))
			want := c.want
			want.fd, want.userData = int32(file.fd), userBackend
			if want.ioprio != 0 {
				want.ioprio = l.alonePriority
			}
			if want.off == 0 && want.opcode != opFsync {
				want.off = off
			}
			if got := lastEntry(l); got != want {
				t.Fatalf("asks for %+v, want %+v", got, want)
			}
			if l.ops[0].given != 0 {
				t.Errorf("it counts as given up %d times before it is begun", l.ops[0].given)
			}
			if c.step == 0 {
				return
			}
			l.backendDone(0, moved)
			want.off += moved
			if c.step > 0 {
				want.addr += moved
				want.len -= moved
			}
			if got := lastEntry(l); got != want {
				t.Errorf("asks for the rest with %+v, want %+v", got, want)
			}
		})
	}
}

// TestErrorsAreErrors: whatever the kernel refuses ends with its errno and never well, but for a
// discard that is not taken; and only a zeroing or a discard that is not supported is tried in
// another way, the latter with a wait.
func TestErrorsAreErrors(t *testing.T) {
	for st := stepRead; st < stepRefused; st++ {
		for _, errno := range []unix.Errno{unix.EINVAL, unix.EOPNOTSUPP, unix.EIO, unix.ENOSPC, unix.EPERM, unix.EBADF, unix.ENODEV,
			unix.ENOTTY, unix.EFBIG, unix.EROFS, unix.EREMOTEIO, unix.ENODATA, unix.ETIMEDOUT, unix.EDQUOT, unix.EBUSY} {
			op := operation{step: st, dsync: true, length: 4096, port: &Port{file: &File{}}, data: Registered(0, 0, 4096)}
			again, err := op.advance(-int32(errno))
			unsupported := errno == unix.EOPNOTSUPP
			wantAgain := unsupported && (st == stepPunch || st == stepZeroRange || st == stepDiscard)
			wantWell := st == stepDiscard && errno == unix.EINVAL
			if again != wantAgain || !again && (err == nil) != wantWell || err != nil && !errors.Is(err, errno) {
				t.Errorf("step %d, %v: again %t, error %v", st, errno, again, err)
			}
			if op.off != 0 || op.length != 4096 || !op.dsync {
				t.Errorf("step %d, %v: %d bytes at %d are left, durably: %t", st, errno, op.length, op.off, op.dsync)
			}
		}
	}
}
