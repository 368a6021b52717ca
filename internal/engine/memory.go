package engine

import (
	"slices"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/process"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// lockMemory keeps the daemon from waiting for memory on a write's way. What is mapped later, the queues' buffers
// among it, is locked as it comes. The live map is left out: its tmpfs is never swapped out, and pages of it are
// given back.
func (e *Engine) lockMemory() error {
	process.ReserveHeap()
	err := sys.LockMemory()
	if err != nil {
		e.Warn("the daemon's memory is not locked (%v): when memory is short the clone may be slow, or stand still if swap lies on it", err)
	}
	return e.live.Unlock()
}

// WarmUp takes the memory that the steps will need. On an emulated CPU (6.12) it was 1.8 s of the 3.8 s from one daemon
// to the next; 0.4 s are left.
func (e *Engine) WarmUp() error {
	def := &e.start.Definition
	n, size := footprint.QueueBuffers(def.RegionSize, def.QueueDepth)
	sizes := append(slices.Repeat([]int64{int64(n) * size}, def.Queues), footprint.HydratorBuffers*definition.DefaultBatchBytes)
	for _, size := range sizes {
		m, err := e.allocate(size)
		if err != nil {
			return err
		}
		e.spare = append(e.spare, m)
	}
	process.WarmThreads(def.Queues + process.HydratorThreads + process.ControlThreads + process.OtherThreads)
	process.ReserveHeap()
	return sys.TouchProgram()
}

// settlePages takes the memory of the first pages of the region map, those that need none left out.
func (e *Engine) settlePages(nr uint64, spared func(page uint64) bool) error {
	for page := range min(nr, footprint.SettledPages) {
		if spared(page) {
			continue
		}
		if err := e.live.Touch(page); err != nil {
			return &exit.Error{Code: exit.Other, Doing: "take memory for the region map", Object: livemap.Folder, Cause: err, Next: "Free some memory."}
		}
	}
	return nil
}
