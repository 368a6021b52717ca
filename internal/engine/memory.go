package engine

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/process"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// memory is that of the copy buffers. The daemon's goroutine takes it and gives it back.
type memory struct {
	mapped []*sys.Mapping
	spare  []*sys.Mapping // of these, what was taken in advance
}

// warmUp takes in advance what the steps will need, and what else takes its time then. On an
// emulated CPU (6.12) it was 1.8 s of the 3.8 s from one daemon to the next; 0.4 s are left.
func (m *memory) warmUp(def *definition.Definition) error {
	n, size := footprint.QueueBuffers(def.RegionSize, def.QueueDepth)
	sizes := append(slices.Repeat([]int64{int64(n) * size}, def.Queues), footprint.HydratorBuffers*definition.DefaultBatchBytes)
	for _, size := range sizes {
		spare, err := m.allocate(size)
		if err != nil {
			return err
		}
		m.spare = append(m.spare, spare)
	}
	process.WarmThreads(def.Queues + process.HydratorThreads + process.ControlThreads + process.OtherThreads)
	process.ReserveHeap()
	return sys.TouchProgram()
}

// buffers are n buffers of one size, next to each other.
func (m *memory) buffers(n int, size int64) ([][]byte, error) {
	all, err := m.allocate(int64(n) * size)
	if err != nil {
		return nil, err
	}
	buffers := make([][]byte, n)
	for i := range buffers {
		from, to := int64(i)*size, int64(i+1)*size
		buffers[i] = all.Bytes()[from:to:to]
	}
	return buffers, nil
}

// allocate gives memory that was taken in advance, or maps some. free gives it back.
func (m *memory) allocate(size int64) (*sys.Mapping, error) {
	for i, spare := range m.spare {
		if int64(len(spare.Bytes())) == size {
			m.spare = slices.Delete(m.spare, i, i+1)
			return spare, nil
		}
	}
	mapped, err := sys.Map(int(size), true)
	if err != nil {
		return nil, fmt.Errorf("allocate: %w", err)
	}
	m.mapped = append(m.mapped, mapped)
	return mapped, nil
}

// free gives all of it back. What is abandoned may be filled yet, and goes with the process.
func (m *memory) free(abandoned bool) (err error) {
	if abandoned {
		m.mapped = nil
	}
	for _, mapped := range m.mapped {
		err = errors.Join(err, mapped.Close())
	}
	m.mapped = nil
	return err
}

// lockMemory keeps the daemon from waiting for memory on a write's way. What is mapped later, the
// queues' buffers among it, is locked as it comes. The live map is to be left out: its tmpfs is
// never swapped out, and pages of it are given back.
func lockMemory(warn func(format string, args ...any)) {
	process.ReserveHeap()
	err := sys.LockMemory()
	if err != nil {
		warn("the daemon's memory is not locked (%v): when memory is short the clone may be slow, or hang if it holds swap", err)
	}
}
