package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// namePattern is what a clone may be called: it becomes a file name.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// definition is what `add` was asked for. It is kept beside the control socket
// while the clone exists, and handed to the daemon. Zero numbers mean: the
// default, or what the metadata says.
type definition struct {
	Name         string `json:"name"`
	Source       string `json:"source"`
	Dest         string `json:"dest"`
	Metadata     string `json:"metadata"`
	RegionSize   int64  `json:"region_size"` // bytes
	Threshold    uint64 `json:"hydration_threshold"`
	Batch        uint64 `json:"hydration_batch_size"`
	NoHydration  bool   `json:"no_hydration"`
	Queues       int    `json:"queues"`
	QueueDepth   int    `json:"queue_depth"`
	SourceShared bool   `json:"source_shared"`

	// What the daemon adds once it knows: the block device, and the mark that the
	// driver keeps for its server, by which a left-over device is known as this
	// clone's.
	Device string `json:"device,omitempty"`
	Mark   uint64 `json:"mark,omitempty"`
}

// start is a definition with what holds for this start only.
type start struct {
	Definition definition `json:"definition"`
	Create     bool       `json:"create"` // make new metadata
	Open       bool       `json:"open"`   // use the metadata that is there
	Force      bool       `json:"force"`
}

// Bounds of the queues: the driver's own limit on the depth, and no more queues
// than make sense.
const (
	maxQueues     = 64
	maxQueueDepth = 4096
)

// Defaults of a definition.
//
// Regions of 4 KiB: a file system writes in such blocks, so nearly every write
// covers its regions whole and needs no copy, while the map costs 64 MiB for
// 1 TiB at most, kept sparse. Background copies do not get smaller with the
// regions: threshold and batch are set from bytes.
const (
	defaultRegionSize = 4 << 10
	defaultQueues     = 1
	defaultQueueDepth = 128
	defaultBatchBytes = 1 << 20 // a copy: long enough for a disk to stream
	defaultBatches    = 4       // copies at a time: enough to keep a disk busy, few enough not to fill its queue
)

// check refuses what no clone can be.
func (d *definition) check() error {
	if err := checkName(d.Name); err != nil {
		return err
	}
	for _, p := range []struct{ flag, path string }{{"--source", d.Source}, {"--dest", d.Dest}, {"--metadata", d.Metadata}} {
		if p.path == "" {
			return usage(p.flag + " is missing")
		}
	}
	power := d.RegionSize&(d.RegionSize-1) == 0
	switch {
	case d.RegionSize != 0 && (!power || d.RegionSize < 4<<10 || d.RegionSize > 1<<30):
		return usage(fmt.Sprintf("--region-size %d: a power of two from 4KiB to 1GiB is needed", d.RegionSize))
	case d.Queues < 1 || d.Queues > maxQueues:
		return usage(fmt.Sprintf("--queues %d: 1 to %d are possible", d.Queues, maxQueues))
	case d.QueueDepth < 1 || d.QueueDepth > maxQueueDepth:
		return usage(fmt.Sprintf("--queue-depth %d: 1 to %d is possible", d.QueueDepth, maxQueueDepth))
	}
	return nil
}

func checkName(name string) error {
	if namePattern.MatchString(name) {
		return nil
	}
	if name == "" {
		return usage("the name of the clone is missing")
	}
	return usage(fmt.Sprintf("name %q: letters, digits and ._- are allowed, 64 at most, a letter or digit first", name))
}

// differences names what another definition of the same clone says otherwise.
func (d *definition) differences(other *definition) string {
	var all []string
	for _, f := range []struct {
		name        string
		here, other any
	}{
		{"source", d.Source, other.Source}, {"dest", d.Dest, other.Dest}, {"metadata", d.Metadata, other.Metadata},
		{"region size", d.RegionSize, other.RegionSize}, {"no hydration", d.NoHydration, other.NoHydration},
		{"hydration threshold", d.Threshold, other.Threshold}, {"hydration batch size", d.Batch, other.Batch},
		{"queues", d.Queues, other.Queues}, {"queue depth", d.QueueDepth, other.QueueDepth},
		{"source shared", d.SourceShared, other.SourceShared},
	} {
		if f.here != f.other {
			all = append(all, fmt.Sprintf("%s is %v, not %v", f.name, f.here, f.other))
		}
	}
	return strings.Join(all, "; ")
}

// fillIn sets what was left to the defaults, once the region size is known.
func (d *definition) fillIn() {
	if d.RegionSize == 0 {
		d.RegionSize = defaultRegionSize
	}
	if d.Batch == 0 {
		d.Batch = uint64(max(1, defaultBatchBytes/d.RegionSize))
	}
	if d.Threshold == 0 {
		d.Threshold = d.Batch * defaultBatches
	}
}

// usage is a complaint about the command line.
func usage(why string) error {
	return &exit.Error{Code: exit.Usage, Doing: "read the command line", Cause: errors.New(why), Next: "See `ublk-clone help`."}
}
