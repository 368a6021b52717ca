package clone

import "sync/atomic"

// recentBlock is the unit in which recent writes are told, in bytes.
const recentBlock = 4096

// recent is some of the last writes of a lane, for whoever wants to know a block that users wrote:
// the first ones, and then one in every recentStride. It is written by the lane only, without a
// lock, and is read by anybody.
type recent struct {
	n  uint32
	at [recentWrites]atomic.Uint64 // block<<8 | blocks; 0: none
}

const (
	recentWrites = 16
	recentStride = 64
)

func (r *recent) add(off, length int64) {
	r.n++
	slot := r.n - 1
	if slot >= recentWrites {
		if r.n%recentStride != 0 {
			return
		}
		slot = r.n / recentStride % recentWrites
	}
	first, last := uint64(off)/recentBlock, uint64(off+length-1)/recentBlock
	r.at[slot].Store(first<<8 | min(last-first+1, 0xff))
}

// WrittenStretch is a part of the device that users wrote, in bytes; its ends are multiples of
// 4096.
type WrittenStretch struct{ Off, Length int64 }
