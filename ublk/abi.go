package ublk

//lint:file-ignore U1000 the structures are the kernel's, all of their fields

import "unsafe"

// Control commands, to /dev/ublk-control: Linux ioctl numbers of type 'u' and size 32.
const (
	cmdGetQueueAffinity = 0x80207501
	cmdAddDev           = 0xc0207504
	cmdDelDev           = 0xc0207505
	cmdStartDev         = 0xc0207506
	cmdStopDev          = 0xc0207507
	cmdSetParams        = 0xc0207508
	cmdGetParams        = 0x80207509
	cmdStartRecovery    = 0xc0207510
	cmdEndRecovery      = 0xc0207511
	cmdGetDevInfo2      = 0x80207512 // 6.3
	cmdGetFeatures      = 0x80207513 // 6.5
	cmdDelDevAsync      = 0x80207514 // 6.9
	cmdQuiesceDev       = 0xc0207516 // 6.16
	cmdTryStopDev       = 0xc0207517 // 7.0
)

// I/O commands, to /dev/ublkcN: type 'u', size 16.
const (
	ioFetchReq          = 0xc0107520
	ioCommitAndFetchReq = 0xc0107521
)

// Operations: the low byte of op_flags.
const (
	OpRead        = 0
	OpWrite       = 1
	OpFlush       = 2
	OpDiscard     = 3
	OpWriteZeroes = 5
)

// Flags of a request, tested on op_flags as it is. (The header's ublksrv_get_flags shifts them by
// 8, and these constants do not fit its result.)
const (
	FlagMeta    = 1 << 11 // file system metadata: a hint
	FlagFUA     = 1 << 13 // durable when answered
	FlagNoUnmap = 1 << 15 // WRITE_ZEROES: the space stays allocated
	FlagSwap    = 1 << 16

	flagNeedRegBuf = 1 << 17 // its pages could not be registered
)

// autoBufFallback is UBLK_AUTO_BUF_REG_FALLBACK of struct ublk_auto_buf_reg, which is the address
// of an entry: a request that cannot be registered comes all the same.
//
//	struct ublk_auto_buf_reg { __u16 index; __u8 flags; __u8 reserved0; __u32 reserved1; };
const autoBufFallback = 1

// Places of requests in ublkcN, for reading and writing their bytes.
const (
	ioBufStart  = 0x80000000 // UBLKSRV_IO_BUF_OFFSET
	tagOffset   = 25         // UBLK_TAG_OFF
	queueOffset = 41         // UBLK_QID_OFF
)

const (
	opMask      = 0xff
	sectorShift = 9

	maxDepth  = 4096     // UBLK_MAX_QUEUE_DEPTH
	maxQueues = 4096     // UBLK_MAX_NR_QUEUES
	maxIOSize = 32 << 20 // UBLK_IO_BUF_BITS is 25
	noQueue   = 0xffff   // queue_id of commands that are for no queue
	anyDevice = ^uint32(0)
)

// ctrlCmd is the payload of a control command, 32 bytes.
//
//	struct ublksrv_ctrl_cmd {
//		__u32 dev_id; __u16 queue_id; __u16 len; __u64 addr; __u64 data[1];
//		__u16 dev_path_len; __u16 pad; __u32 reserved;
//	};
type ctrlCmd struct {
	devID      uint32
	queueID    uint16
	len        uint16
	addr       uint64
	data       uint64
	devPathLen uint16
	pad        uint16
	reserved   uint32
}

// devInfo is what ADD_DEV takes and gives back, 64 bytes.
//
//	struct ublksrv_ctrl_dev_info {
//		__u16 nr_hw_queues; __u16 queue_depth; __u16 state; __u16 io_desc_size;
//		__u32 max_io_buf_bytes; __u32 dev_id; __s32 ublksrv_pid; __u32 pad1;
//		__u64 flags; __u64 ublksrv_flags; __u32 owner_uid; __u32 owner_gid;
//		__u64 reserved1; __u64 reserved2;
//	};
type devInfo struct {
	nrHWQueues    uint16
	queueDepth    uint16
	state         uint16
	ioDescSize    uint16 // 7.3; padding before
	maxIOBufBytes uint32
	devID         uint32
	ublksrvPID    int32
	pad1          uint32
	flags         uint64
	ublksrvFlags  uint64
	ownerUID      uint32
	ownerGID      uint32
	reserved1     uint64
	reserved2     uint64
}

// ioDesc is a request's descriptor, 24 bytes.
//
//	struct ublksrv_io_desc {
//		__u32 op_flags; union { __u32 nr_sectors; __u32 nr_zones; };
//		__u64 start_sector; __u64 addr;
//	};
type ioDesc struct {
	opFlags     uint32
	nrSectors   uint32
	startSector uint64
	addr        uint64
}

// ioCmd is the payload of an I/O command, 16 bytes.
//
//	struct ublksrv_io_cmd {
//		__u16 q_id; __u16 tag; __s32 result; union { __u64 addr; __u64 zone_append_lba; };
//	};
type ioCmd struct {
	qID    uint16
	tag    uint16
	result int32
	addr   uint64
}

// Types of parameters present in kernelParams.
const (
	paramBasic    = 1 << 0
	paramDiscard  = 1 << 1
	paramDMAAlign = 1 << 4

	attrVolatileCache = 1 << 2
	attrFUA           = 1 << 3
)

// paramsBasic is struct ublk_param_basic, 32 bytes.
//
//	struct ublk_param_basic {
//		__u32 attrs; __u8 logical_bs_shift; __u8 physical_bs_shift; __u8 io_opt_shift; __u8 io_min_shift;
//		__u32 max_sectors; __u32 chunk_sectors; __u64 dev_sectors; __u64 virt_boundary_mask;
//	};
type paramsBasic struct {
	attrs            uint32
	logicalBSShift   uint8
	physicalBSShift  uint8
	ioOptShift       uint8
	ioMinShift       uint8
	maxSectors       uint32
	chunkSectors     uint32
	devSectors       uint64
	virtBoundaryMask uint64
}

// paramsDiscard is struct ublk_param_discard, 20 bytes.
//
//	struct ublk_param_discard {
//		__u32 discard_alignment; __u32 discard_granularity; __u32 max_discard_sectors;
//		__u32 max_write_zeroes_sectors; __u16 max_discard_segments; __u16 reserved0;
//	};
type paramsDiscard struct {
	discardAlignment      uint32
	discardGranularity    uint32
	maxDiscardSectors     uint32
	maxWriteZeroesSectors uint32
	maxDiscardSegments    uint16
	reserved0             uint16
}

// kernelParams is struct ublk_params of 7.x, 152 bytes; older kernels take its beginning. The parts
// that are not used have their place only.
//
//	struct ublk_params {
//		__u32 len; __u32 types;
//		struct ublk_param_basic basic; struct ublk_param_discard discard; struct ublk_param_devt devt;
//		struct ublk_param_zoned zoned; struct ublk_param_dma_align dma; struct ublk_param_segment seg;
//		struct ublk_param_integrity integrity;
//	};
type kernelParams struct {
	len       uint32
	types     uint32
	basic     paramsBasic
	discard   paramsDiscard
	devt      [4]uint32
	zoned     [8]uint32
	dmaMask   uint32 // struct ublk_param_dma_align { __u32 alignment; __u8 pad[4]; }
	dmaPad    uint32
	pad       uint32    // the compiler's: ublk_param_segment begins with a __u64
	segment   [4]uint32 // struct ublk_param_segment
	integrity [4]uint32 // struct ublk_param_integrity
}

// Sizes and offsets, checked at compile time: a wrong one makes an array length negative.
var (
	_ [32 - unsafe.Sizeof(ctrlCmd{})]struct{}
	_ [unsafe.Sizeof(ctrlCmd{}) - 32]struct{}
	_ [64 - unsafe.Sizeof(devInfo{})]struct{}
	_ [unsafe.Sizeof(devInfo{}) - 64]struct{}
	_ [24 - unsafe.Sizeof(ioDesc{})]struct{}
	_ [unsafe.Sizeof(ioDesc{}) - 24]struct{}
	_ [16 - unsafe.Sizeof(ioCmd{})]struct{}
	_ [unsafe.Sizeof(ioCmd{}) - 16]struct{}
	_ [152 - unsafe.Sizeof(kernelParams{})]struct{}
	_ [unsafe.Sizeof(kernelParams{}) - 152]struct{}
	_ [108 - unsafe.Offsetof(kernelParams{}.dmaMask)]struct{}
	_ [unsafe.Offsetof(kernelParams{}.dmaMask) - 108]struct{}
	_ [120 - unsafe.Offsetof(kernelParams{}.segment)]struct{}
	_ [unsafe.Offsetof(kernelParams{}.segment) - 120]struct{}
)

const kernelParamsSize = uint32(unsafe.Sizeof(kernelParams{}))

// bytesOf is the memory of a kernel struct.
func bytesOf[T any](p *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}
