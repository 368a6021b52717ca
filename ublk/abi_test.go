package ublk

import (
	"encoding/hex"
	"math"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl is Linux's _IOC for type 'u'.
func ioctl(dir, nr, size uint32) uint32 { return dir<<30 | size<<16 | 'u'<<8 | nr }

const (
	iocRead      = 2
	iocReadWrite = 3
)

func TestOpcodes(t *testing.T) {
	for _, c := range []struct {
		name      string
		got       uint32
		dir, nr   uint32
		want      uint32
		ioCommand bool
	}{
		{"GET_QUEUE_AFFINITY", cmdGetQueueAffinity, iocRead, 0x01, 0x80207501, false},
		{"ADD_DEV", cmdAddDev, iocReadWrite, 0x04, 0xc0207504, false},
		{"DEL_DEV", cmdDelDev, iocReadWrite, 0x05, 0xc0207505, false},
		{"START_DEV", cmdStartDev, iocReadWrite, 0x06, 0xc0207506, false},
		{"STOP_DEV", cmdStopDev, iocReadWrite, 0x07, 0xc0207507, false},
		{"SET_PARAMS", cmdSetParams, iocReadWrite, 0x08, 0xc0207508, false},
		{"GET_PARAMS", cmdGetParams, iocRead, 0x09, 0x80207509, false},
		{"START_USER_RECOVERY", cmdStartRecovery, iocReadWrite, 0x10, 0xc0207510, false},
		{"END_USER_RECOVERY", cmdEndRecovery, iocReadWrite, 0x11, 0xc0207511, false},
		{"GET_DEV_INFO2", cmdGetDevInfo2, iocRead, 0x12, 0x80207512, false},
		{"GET_FEATURES", cmdGetFeatures, iocRead, 0x13, 0x80207513, false},
		{"DEL_DEV_ASYNC", cmdDelDevAsync, iocRead, 0x14, 0x80207514, false},
		{"QUIESCE_DEV", cmdQuiesceDev, iocReadWrite, 0x16, 0xc0207516, false},
		{"TRY_STOP_DEV", cmdTryStopDev, iocReadWrite, 0x17, 0xc0207517, false},
		{"FETCH_REQ", ioFetchReq, iocReadWrite, 0x20, 0xc0107520, true},
		{"COMMIT_AND_FETCH_REQ", ioCommitAndFetchReq, iocReadWrite, 0x21, 0xc0107521, true},
	} {
		size := uint32(unsafe.Sizeof(ctrlCmd{}))
		if c.ioCommand {
			size = uint32(unsafe.Sizeof(ioCmd{}))
		}
		if encoded := ioctl(c.dir, c.nr, size); c.got != c.want || c.got != encoded {
			t.Errorf("%s is %#x, want %#x (encoded here: %#x)", c.name, c.got, c.want, encoded)
		}
	}
}

func TestOffsets(t *testing.T) {
	var c ctrlCmd
	var i devInfo
	var d ioDesc
	var o ioCmd
	var p kernelParams
	for _, f := range []struct {
		name      string
		got, want uintptr
	}{
		{"ctrl_cmd.queue_id", unsafe.Offsetof(c.queueID), 4},
		{"ctrl_cmd.len", unsafe.Offsetof(c.len), 6},
		{"ctrl_cmd.addr", unsafe.Offsetof(c.addr), 8},
		{"ctrl_cmd.data", unsafe.Offsetof(c.data), 16},
		{"ctrl_cmd.dev_path_len", unsafe.Offsetof(c.devPathLen), 24},
		{"ctrl_cmd.reserved", unsafe.Offsetof(c.reserved), 28},
		{"dev_info.queue_depth", unsafe.Offsetof(i.queueDepth), 2},
		{"dev_info.state", unsafe.Offsetof(i.state), 4},
		{"dev_info.io_desc_size", unsafe.Offsetof(i.ioDescSize), 6},
		{"dev_info.max_io_buf_bytes", unsafe.Offsetof(i.maxIOBufBytes), 8},
		{"dev_info.dev_id", unsafe.Offsetof(i.devID), 12},
		{"dev_info.ublksrv_pid", unsafe.Offsetof(i.ublksrvPID), 16},
		{"dev_info.flags", unsafe.Offsetof(i.flags), 24},
		{"dev_info.ublksrv_flags", unsafe.Offsetof(i.ublksrvFlags), 32},
		{"dev_info.owner_uid", unsafe.Offsetof(i.ownerUID), 40},
		{"dev_info.reserved2", unsafe.Offsetof(i.reserved2), 56},
		{"io_desc.nr_sectors", unsafe.Offsetof(d.nrSectors), 4},
		{"io_desc.start_sector", unsafe.Offsetof(d.startSector), 8},
		{"io_desc.addr", unsafe.Offsetof(d.addr), 16},
		{"io_cmd.tag", unsafe.Offsetof(o.tag), 2},
		{"io_cmd.result", unsafe.Offsetof(o.result), 4},
		{"io_cmd.addr", unsafe.Offsetof(o.addr), 8},
		{"params.basic", unsafe.Offsetof(p.basic), 8},
		{"params.basic.max_sectors", unsafe.Offsetof(p.basic) + unsafe.Offsetof(p.basic.maxSectors), 16},
		{"params.basic.dev_sectors", unsafe.Offsetof(p.basic) + unsafe.Offsetof(p.basic.devSectors), 24},
		{"params.discard", unsafe.Offsetof(p.discard), 40},
		{"params.discard.max_discard_segments", unsafe.Offsetof(p.discard) + unsafe.Offsetof(p.discard.maxDiscardSegments), 56},
		{"params.devt", unsafe.Offsetof(p.devt), 60},
		{"params.zoned", unsafe.Offsetof(p.zoned), 76},
		{"params.dma", unsafe.Offsetof(p.dmaMask), 108},
		{"params.seg", unsafe.Offsetof(p.segment), 120},
		{"params.integrity", unsafe.Offsetof(p.integrity), 136},
	} {
		if f.got != f.want {
			t.Errorf("offset of %s is %d, want %d", f.name, f.got, f.want)
		}
	}
}

// TestEncodedBytes is the memory that the kernel gets, byte for byte (little endian).
func TestEncodedBytes(t *testing.T) {
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"START_DEV of device 3", bytesOf(&ctrlCmd{devID: 3, queueID: noQueue, data: 0x1234}),
			"03000000ffff0000" + "0000000000000000" + "3412000000000000" + "0000000000000000"},
		{"COMMIT of queue 1 tag 2", bytesOf(&ioCmd{qID: 1, tag: 2, result: -5, addr: 0x1122334455667788}),
			"01000200fbffffff" + "8877665544332211"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s is\n%s, want\n%s", c.name, got, c.want)
		}
	}
}

// TestResult: the driver is told the whole length or an errno.
func TestResult(t *testing.T) {
	read := Desc{Op: OpRead, NrSectors: 8}
	for _, c := range []struct {
		name string
		d    Desc
		err  error
		want int32
	}{
		{"read", read, nil, 4096},
		{"write", Desc{Op: OpWrite, NrSectors: 1}, nil, 512},
		{"flush", Desc{Op: OpFlush, Sector: math.MaxUint64}, nil, 0},
		{"discard beyond 2^31 bytes", Desc{Op: OpDiscard, NrSectors: math.MaxUint32}, nil, 0},
		{"write-zeroes", Desc{Op: OpWriteZeroes, NrSectors: 8}, nil, 0},
		{"errno", read, unix.ENOSPC, -28},
		{"wrapped errno", read, &CommandError{Errno: unix.ENOMEM}, -12},
		{"no errno", read, ErrClosed, -5},
		{"EAGAIN", read, unix.EAGAIN, -5},
		{"errno 0", read, unix.Errno(0), -5},
	} {
		if got := c.d.result(c.err); got != c.want {
			t.Errorf("%s: result %d, want %d", c.name, got, c.want)
		}
	}
}

func TestDesc(t *testing.T) {
	big := Desc{Op: OpDiscard, Sector: 1 << 40, NrSectors: math.MaxUint32}
	if big.Offset() != 1<<49 || big.Length() != (1<<32-1)*512 {
		t.Errorf("offset %d and length %d of %+v", big.Offset(), big.Length(), big)
	}
	if !(Desc{Op: OpWrite, Flags: 0x2001}).FUA() || (Desc{Op: OpWrite, Flags: 0x8001}).FUA() {
		t.Error("FUA is not bit 13")
	}
	for _, c := range []struct {
		d    Desc
		want bool
	}{
		{Desc{Op: OpRead, NrSectors: 8}, true},
		{Desc{Op: OpWrite, NrSectors: 9}, false},
		{Desc{Op: OpDiscard, NrSectors: 1 << 20}, true},
		{Desc{Op: 15}, false},
	} {
		if got := c.d.known(4096); got != c.want {
			t.Errorf("%+v with buffers of 4096: known %v", c.d, got)
		}
	}
}
