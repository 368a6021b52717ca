package engine

import (
	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
)

// The live map stands in for metadata that a recovery cannot read or write (I11): the device goes
// on in mode ro. Why that is safe:
//
//  1. The live map is the one of this device: its name is the UUID whose beginning is the device's
//     cookie in the driver, and boot, session, regions, source and destination are checked as ever,
//     against the copy of the superblock that it holds. What is of another clone is refused.
//  2. It is the whole truth: all that the metadata held was in it before the first request was
//     answered (Loaded), every mark since is made in it first, and a page whose memory is gone is
//     noted as hydrated throughout before it goes.
//  3. Nothing is written to the metadata: the store has no device (metadata.Detached). The mode is
//     ro, so nothing is marked that could not be committed, and no FLUSH that needs a commit is
//     answered.
//  4. The fence (I7) is for writes of a dead daemon that land late. Those to the destination wait
//     for its lock as ever. The metadata's lock is held where they can be opened for writing. Where
//     they cannot be, the device is gone or read-only, and nothing of ours is written; when it
//     comes back it is opened with its lock, and every page is written anew (repairMetadata), so
//     that it does not matter what it holds.
//  5. Metadata that can be read and make no sense are treated alike, and it is said: what they hold
//     is in the live map. Those of another clone, another session or a newer version are refused:
//     they have an owner.

// fillAlone takes over the live map alone. What of it is durable is not known.
func (l *liveMap) fillAlone(regions *bitmap.Map) error {
	l.uncommitted = bitmap.NewDelta(regions.NrPages(), 0)
	l.SetState(uint8(max(clone.ReadOnly, clone.Mode(l.State().Mode))), false)
	return l.mapOf(regions)
}

// mapOf fills a map whose memory holds the live map's pages.
func (l *liveMap) mapOf(regions *bitmap.Map) error {
	for page := range regions.NrPages() {
		if l.Full(page) {
			regions.LoadFull(page)
		}
	}
	err := l.Used(func(page uint64) error {
		if l.Full(page) {
			return nil
		}
		return regions.Recover(page, nil, nil)
	})
	if err != nil {
		return err
	}
	return l.recoverZeros(regions, nil)
}
