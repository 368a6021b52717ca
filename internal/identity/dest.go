package identity

import (
	"errors"
	"fmt"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// Is the destination the one of before? A WWID, a serial number or a UUID is compared with all else
// that the metadata says (metadata.Superblock.Match). Many devices have none, as virtio disks
// without a serial; then another of the same size could take its place unnoticed, and the name by
// which it is opened says nothing. So in this order:
//
//	1  the session of the metadata goes on, in the same boot, and its instance is the device's       the same
//	2  blocks that are known to be in it (sample.go), after a clean stop                         all must be there
//	   after a death or a power cut, or where the destination was complete, and may be in use         some must be
//	   otherwise, as users may have written the others since
//	3  there are no such blocks: nothing is hydrated, or the program that had it did not note any.
//	   The instance of this boot, or the time at which a file was made, is another one                refused
//	   nothing tells                                                                                  a warning
//
// Whatever is refused can be forced.

// destReadLimit bounds the reading of the blocks.
const destReadLimit = 30 * time.Second

// DestInstance is the instance of a destination in a session.
func DestInstance(dest *blockdev.Device, session uint64) metadata.DestInstance {
	m := dest.Instance()
	return metadata.DestInstance{Session: session, Number: m.Number, Disk: m.Disk, Birth: m.Birth, Tree: metadata.Tree(m.Tree)}
}

// DestCheck tells whether a destination is the one of before.
type DestCheck struct {
	Dest   *blockdev.Device
	Sample *DestSample // takes over what is known of it
	Force  bool
	Warn   func(format string, args ...any)
}

// Know refuses a destination that is another one than that of the metadata, and takes over what is
// known of it. want is what the metadata of this pair say in this boot.
func (c *DestCheck) Know(sb, want *metadata.Superblock) error {
	instance := DestInstance(c.Dest, 0)
	sample, exact := sb.Known()
	hasInstance := sb.DestInstance.Session != 0 && sb.DestInstance.Session == sb.Session
	sameBoot := hasInstance && sb.BootID == want.BootID
	if sameBoot && !sb.Clean && sb.DestInstance.Same(instance) { // 1
		if sample != nil {
			c.Sample.adopt(sample.Blocks.Used())
		}
		return nil
	}
	sameDisk := sameBoot && sb.DestInstance.Number == instance.Number && sb.DestInstance.Disk == instance.Disk
	replaced := hasInstance && sb.DestInstance.Birth != 0 && instance.Birth != 0 && sb.DestInstance.Birth != instance.Birth
	if sample != nil && len(sample.Blocks.Used()) > 0 { // 2
		err := c.compareSample(sample.Blocks.Used(), exact && !sb.Complete, replaced)
		if exit.Code(err) == exit.Dest && sameDisk {
			c.Warn("cannot check whether the content of the destination is what it was: %v", err)
			c.Sample.adopt(sample.Blocks.Used())
			return nil
		}
		return err
	}
	switch nothing := exact; { // 3
	case replaced && !nothing:
		return c.other(errors.New("it was made at another time than the file that this clone had"))
	case sameBoot && !sameDisk && sb.Dest.ID == "" && !nothing:
		return c.other(fmt.Errorf("it is block device %s now, and was %s; nothing else tells whether it is the one that this clone had",
			instanceText(instance), instanceText(sb.DestInstance)))
	case nothing && sb.Dest.ID == "" && !sb.Complete:
		if err := c.Dest.Signature(c.Force); err != nil {
			return err
		}
	}
	if sb.Dest.ID == "" && sb.Counters.Starts > 0 {
		c.Warn("nothing tells whether the destination %s is the one that this clone had: it has no WWID, serial number or UUID, and nothing is noted of its content", c.Dest.Path())
	}
	return nil
}

func instanceText(m metadata.DestInstance) string {
	return fmt.Sprintf("%d:%d of disk sequence %d", sys.Major(m.Number), sys.Minor(m.Number), m.Disk)
}

// compareSample reads the blocks that are known to be in the destination.
func (c *DestCheck) compareSample(blocks []metadata.SampleBlock, exact, replaced bool) error {
	found, err := readSample(c.Dest, blocks, destReadLimit)
	if err != nil {
		return &exit.Error{Code: exit.Dest, Doing: "read the destination", Object: c.Dest.Path(), Cause: err, Next: "Check the device."}
	}
	there, n, same := judge(blocks, found, exact)
	switch {
	case same:
	case exact && there > 0:
		err = fmt.Errorf("somebody has written to it since this clone was stopped: only %d of %d known blocks are as they were", there, n)
	case replaced:
		err = fmt.Errorf("it is another file than the one that this clone had: %d of %d known blocks are in it", there, n)
	default:
		err = fmt.Errorf("it is not the one that this clone had: %d of %d known blocks are in it", there, n)
	}
	if err != nil {
		return c.other(err)
	}
	var kept []metadata.SampleBlock
	for i := range blocks {
		if found[i].Sum == blocks[i].Sum {
			kept = append(kept, blocks[i])
		}
	}
	c.Sample.adopt(kept)
	return nil
}

// other refuses the destination, or goes on with it if that is forced.
func (c *DestCheck) other(cause error) error {
	if c.Force {
		c.Warn("--force: the destination %s is used: %v", c.Dest.Path(), cause)
		return nil
	}
	return &exit.Error{Code: exit.Refused, Doing: "use the destination", Object: c.Dest.Path(), Cause: cause,
		Next: "Nothing was written. Check where the path leads: device names may have changed places. --force goes on with what is there."}
}

// readSample reads the blocks as they are now. One that cannot be read is zero in found; an error
// means that none can.
func readSample(dest *blockdev.Device, blocks []metadata.SampleBlock, limit time.Duration) (found []metadata.SampleBlock, err error) {
	type result struct {
		blocks []metadata.SampleBlock
		err    error
	}
	done := make(chan result, 1)
	guard.Go("look at the destination", func() {
		all, err := readBlocks(dest, blocks)
		done <- result{all, err}
	})
	select {
	case r := <-done:
		return r.blocks, r.err
	case <-time.After(limit): // the read is left behind, with its buffer
		return nil, fmt.Errorf("no answer within %s", limit)
	}
}

func readBlocks(dest *blockdev.Device, blocks []metadata.SampleBlock) ([]metadata.SampleBlock, error) {
	m, err := sys.Map(metadata.BlockSize, true)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	found, readable := make([]metadata.SampleBlock, len(blocks)), 0
	for i, b := range blocks {
		if errRead := dest.ReadAt(m.Bytes(), b.Offset()); errRead != nil {
			err = errRead
			continue
		}
		found[i] = sampleOf(m.Bytes(), b.Offset())
		readable++
	}
	if readable == 0 {
		return nil, err
	}
	return found, nil
}

// leastPart is which part of the blocks must be there after a power cut, at least: of two disks
// that have nothing to do with each other hardly any block is the same, and users hardly write all
// blocks that they left alone until a moment before.
const leastPart = 8

// judge says how many of the blocks that count are as they were, and whether that is enough. found
// is parallel to blocks.
func judge(blocks, found []metadata.SampleBlock, exact bool) (there, n int, same bool) {
	counts := func(metadata.SampleBlock) bool { return true }
	if !exact {
		counts = countIn(blocks)
	}
	for i, b := range blocks {
		if !counts(b) || found[i].Place == 0 { // that one cannot be read
			continue
		}
		n++
		if found[i].Sum == b.Sum {
			there++
		}
	}
	if exact {
		return there, n, there == n
	}
	return there, n, n == 0 || there > 0 && there*leastPart >= n
}

// countIn chooses what tells most. Blocks that were copied are the same in the destinations of all
// clones of one source, so only those count that users wrote, if there are some and they are
// steady; else all that are steady, and no run of one byte; else whatever there is.
func countIn(blocks []metadata.SampleBlock) func(metadata.SampleBlock) bool {
	isMixed := func(b metadata.SampleBlock) bool { return !b.Is(metadata.SampleUniform) }
	isSteady := func(b metadata.SampleBlock) bool { return isMixed(b) && b.Is(metadata.SampleSteady) }
	isWritten := func(b metadata.SampleBlock) bool { return isSteady(b) && b.Is(metadata.SampleWritten) }
	for _, choice := range []struct {
		counts func(metadata.SampleBlock) bool
		least  int
	}{{isWritten, enoughSteady}, {isSteady, enoughSteady}, {isMixed, 1}} {
		n := 0
		for _, b := range blocks {
			if choice.counts(b) {
				n++
			}
		}
		if n >= choice.least {
			return choice.counts
		}
	}
	return func(metadata.SampleBlock) bool { return true }
}
