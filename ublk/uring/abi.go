package uring

import "unsafe"

// Numbers of include/uapi/linux/io_uring.h (Linux 6.12).
const (
	opNop         = 0
	opFsync       = 3
	opReadFixed   = 4
	opWriteFixed  = 5
	opAsyncCancel = 14
	opFallocate   = 17
	opRead        = 22
	opWrite       = 23
	opSend        = 26
	opURingCmd    = 46

	setupCQSize       = 1 << 3
	setupSubmitAll    = 1 << 7  // 5.18
	setupCoopTaskrun  = 1 << 8  // 5.19
	setupSQE128       = 1 << 10 // 5.19
	setupSingleIssuer = 1 << 12 // 6.0
	setupDeferTaskrun = 1 << 13 // 6.1

	featSingleMmap = 1 << 0 // 5.4
	featNoDrop     = 1 << 1 // 5.5

	enterGetEvents = 1 << 0

	registerFiles    = 2      // 5.1
	unregisterFiles  = 3      // 5.1
	registerBuffers2 = 15     // 5.13
	registerSparse   = 1 << 0 // 5.19

	sqeFixedFile  = 1 << 0 // 5.1
	sqeAsync      = 1 << 4 // 5.6
	fsyncDatasync = 1 << 0

	offSQRing = 0
	offSQEs   = 0x10000000
)

// sqOffsets is struct io_sqring_offsets: where the submission queue's fields lie in the ring's
// mapping.
//
//	struct io_sqring_offsets {
//		__u32 head; __u32 tail; __u32 ring_mask; __u32 ring_entries;
//		__u32 flags; __u32 dropped; __u32 array; __u32 resv1; __u64 user_addr;
//	};
type sqOffsets struct {
	head, tail, ringMask, ringEntries uint32
	flags, dropped, array, resv1      uint32
	userAddr                          uint64
}

// cqOffsets is struct io_cqring_offsets.
//
//	struct io_cqring_offsets {
//		__u32 head; __u32 tail; __u32 ring_mask; __u32 ring_entries;
//		__u32 overflow; __u32 cqes; __u32 flags; __u32 resv1; __u64 user_addr;
//	};
type cqOffsets struct {
	head, tail, ringMask, ringEntries uint32
	overflow, cqes, flags, resv1      uint32
	userAddr                          uint64
}

// params is struct io_uring_params.
//
//	struct io_uring_params {
//		__u32 sq_entries; __u32 cq_entries; __u32 flags; __u32 sq_thread_cpu;
//		__u32 sq_thread_idle; __u32 features; __u32 wq_fd; __u32 resv[3];
//		struct io_sqring_offsets sq_off; struct io_cqring_offsets cq_off;
//	};
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU uint32
	sqThreadIdle, features, wqFD             uint32
	resv                                     [3]uint32
	sqOff                                    sqOffsets
	cqOff                                    cqOffsets
}

// sqe is struct io_uring_sqe, 64 bytes; the unions are named after the member used here.
//
//	struct io_uring_sqe {
//		__u8 opcode; __u8 flags; __u16 ioprio; __s32 fd;
//		union { __u64 off; struct { __u32 cmd_op; __u32 __pad1; }; };
//		union { __u64 addr; };
//		__u32 len;
//		union { __u32 rw_flags; __u32 fsync_flags; __u32 cancel_flags; __u32 uring_cmd_flags; };
//		__u64 user_data;
//		__u16 buf_index; __u16 personality; __s32 file_index;
//		union { struct { __u64 addr3; __u64 __pad2[1]; }; __u8 cmd[0]; };
//	};
type sqe struct {
	opcode      uint8
	flags       uint8
	ioprio      uint16
	fd          int32
	off         uint64
	addr        uint64
	len         uint32
	opFlags     uint32
	userData    uint64
	bufIndex    uint16
	personality uint16
	fileIndex   int32
	addr3       uint64
	pad2        uint64
}

// cqe is struct io_uring_cqe, 16 bytes.
//
//	struct io_uring_cqe { __u64 user_data; __s32 res; __u32 flags; };
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// rsrcRegister is struct io_uring_rsrc_register, 32 bytes.
//
//	struct io_uring_rsrc_register { __u32 nr; __u32 flags; __u64 resv2; __u64 data; __u64 tags; };
type rsrcRegister struct {
	nr, flags         uint32
	resv2, data, tags uint64
}

const (
	sqeSize    = 64
	bigSQESize = 128
	cqeSize    = 16
	// cmdOffset is where a command's payload begins in an entry.
	cmdOffset = 48
)

// Sizes and offsets that the kernel relies on, checked at compile time: a wrong one makes an array
// length negative.
var (
	_ [sqeSize - unsafe.Sizeof(sqe{})]struct{}
	_ [unsafe.Sizeof(sqe{}) - sqeSize]struct{}
	_ [cqeSize - unsafe.Sizeof(cqe{})]struct{}
	_ [unsafe.Sizeof(cqe{}) - cqeSize]struct{}
	_ [32 - unsafe.Sizeof(rsrcRegister{})]struct{}
	_ [unsafe.Sizeof(rsrcRegister{}) - 32]struct{}
	_ [120 - unsafe.Sizeof(params{})]struct{}
	_ [unsafe.Sizeof(params{}) - 120]struct{}
	_ [cmdOffset - unsafe.Offsetof(sqe{}.addr3)]struct{}
	_ [unsafe.Offsetof(sqe{}.addr3) - cmdOffset]struct{}
)
