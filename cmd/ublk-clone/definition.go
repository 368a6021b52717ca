package main

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// isName says whether a clone may be called so: it becomes a file name. (A pattern with a counted repetition would take as
// long to compile as a command takes for all the rest of its start.)
func isName(name string) bool { return len(name) <= 64 && namePattern.MatchString(name) }

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// definition is what `add` was asked for. It is kept beside the control socket
// while the clone exists, and handed to the daemon. Zero numbers mean: the
// default, or what the metadata says.
type definition struct {
	Name         string `json:"name"`
	Source       string `json:"source"`
	Dest         string `json:"dest"`
	Metadata     string `json:"metadata"`
	Size         int64  `json:"size"`        // bytes; 0: the source's
	RegionSize   int64  `json:"region_size"` // bytes
	Settings     change `json:"settings"`    // those that were named
	Queues       int    `json:"queues"`
	QueueDepth   int    `json:"queue_depth"`
	SourceShared bool   `json:"source_shared"`
	Copied       bool   `json:"copied"`        // the bytes of requests, also where the driver can do without
	ZerosAsData  bool   `json:"zeros_as_data"` // zeros of the source are copied as any other bytes
	// Table is dm-clone's line if the clone was defined by one: as it was given,
	// but for paths, which are absolute.
	Table string `json:"table,omitempty"`
	// DM names the device-mapper device that lies over the block device, "" for none.
	DM string `json:"dm,omitempty"`

	// What the daemon adds once it knows, beside the sizes: the block device, and
	// the mark that the driver keeps for its server, by which a left-over device is
	// known as this clone's.
	Device string `json:"device,omitempty"`
	Mark   uint64 `json:"mark,omitempty"`
	// Unit is systemd's unit that the daemon is the main process of, "" if there is none.
	Unit string `json:"unit,omitempty"`
	// KeepMetadata is what the last finish was told.
	KeepMetadata bool `json:"keep_metadata,omitempty"`
}

// start is a definition with what holds for this start only.
type start struct {
	Definition definition `json:"definition"`
	Create     bool       `json:"create"` // make new metadata
	Open       bool       `json:"open"`   // use the metadata that is there
	Force      bool       `json:"force"`
	Recover    bool       `json:"recover"` // take over the device that a dead daemon has left
	Replace    bool       `json:"replace"` // a living daemon is to leave it first
	DryRun     bool       `json:"dry_run"` // only say what would be (dry_run.go)
	Look       bool       `json:"look"`    // only say whether the living daemon could be replaced (preflight.go)
	// Fence is how long a recovery may wait for the dead daemon's last requests; 0: fenceLimit.
	Fence time.Duration `json:"fence,omitempty"`
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
// 1 TiB at most, kept sparse.
const (
	defaultRegionSize = 4 << 10
	defaultQueues     = 1
	defaultQueueDepth = 64
)

// Bounds of a region, in bytes.
const (
	minRegionSize = metadata.MinRegionSize
	maxRegionSize = metadata.MaxRegionSize
)

// leastZeros is from how many bytes on zeros of the source are not copied as data: small enough for what a file system
// leaves between its structures, large enough for a request of its own.
const leastZeros = 64 << 10

// leastZeros is what lanes are told; 0 = never.
func (d *definition) leastZeros() int64 {
	if d.ZerosAsData {
		return 0
	}
	return leastZeros
}

// check refuses what no clone can be.
func (d *definition) check() error {
	if err := errors.Join(checkName(d.Name), d.checkLayer()); err != nil {
		return err
	}
	for _, p := range []struct{ flag, path string }{{"--source", d.Source}, {"--dest", d.Dest}, {"--metadata", d.Metadata}} {
		if p.path == "" {
			return usage(p.flag + " is missing")
		}
	}
	switch {
	case d.Queues < 1 || d.Queues > maxQueues:
		return usage(fmt.Sprintf("--queues %d: 1 to %d are possible", d.Queues, maxQueues))
	case d.QueueDepth < 1 || d.QueueDepth > maxQueueDepth:
		return usage(fmt.Sprintf("--queue-depth %d: 1 to %d is possible", d.QueueDepth, maxQueueDepth))
	}
	return nil
}

func checkName(name string) error {
	if isName(name) {
		return nil
	}
	if name == "" {
		return usage("the name of the clone is missing")
	}
	return usage(fmt.Sprintf("name %q: letters, digits and ._- are allowed, 64 at most, a letter or digit first", name))
}

// regionSizePossible: a power of two within the bounds.
func regionSizePossible(n int64) bool {
	return n&(n-1) == 0 && n >= minRegionSize && n <= maxRegionSize
}

// differences names what another definition of the same clone says otherwise;
// what it leaves open is no difference.
func (d *definition) differences(other *definition) string {
	var all []string
	differ := func(what string, here, other any) {
		all = append(all, fmt.Sprintf("%s is %v, not %v", what, here, other))
	}
	for _, f := range []struct {
		what        string
		here, other any
	}{
		{"source", d.Source, other.Source}, {"dest", d.Dest, other.Dest}, {"metadata", d.Metadata, other.Metadata},
		{"queues", d.Queues, other.Queues}, {"queue depth", d.QueueDepth, other.QueueDepth},
		{"source shared", d.SourceShared, other.SourceShared}, {zeroCopyFlag, !d.Copied, !other.Copied},
		{detectZeroesFlag, !d.ZerosAsData, !other.ZerosAsData},
		{"dm device", cmp.Or(d.DM, "none"), cmp.Or(other.DM, "none")},
	} {
		if f.here != f.other {
			differ(f.what, f.here, f.other)
		}
	}
	if other.Size != 0 && d.Size != 0 && other.Size != d.Size {
		differ("size", exactSize(d.Size), exactSize(other.Size))
	}
	if other.RegionSize != 0 && d.RegionSize != 0 && other.RegionSize != d.RegionSize {
		differ("region size", exactSize(d.RegionSize), exactSize(other.RegionSize))
	}
	for _, k := range allKeys {
		here, named := k.get(&d.Settings)
		if !named {
			here = "not set"
		}
		if there, named := k.get(&other.Settings); named && there != here {
			differ(k.name, here, there)
		}
	}
	return strings.Join(all, "; ")
}

// firstSettings are those of a new clone; the region size is known. A clone by dm-clone's line behaves as
// dm-clone's would: no read-through.
func (d *definition) firstSettings() settings {
	s := defaultSettings(d.RegionSize)
	s.ReadThrough = d.Table == ""
	d.Settings.apply(&s)
	return s
}

// usage is a complaint about the command line.
func usage(why string) error {
	return &exit.Error{Code: exit.Usage, Doing: "read the command line", Cause: errors.New(why), Next: "See `ublk-clone help`."}
}
