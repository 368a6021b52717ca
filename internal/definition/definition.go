package definition

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/text"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// IsName says whether a clone may be called so: it becomes a file name. (A pattern with a counted
// repetition would take as long to compile as a command takes for all the rest of its start.)
func IsName(name string) bool { return len(name) <= 64 && namePattern.MatchString(name) }

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// Definition is what `add` was asked for. It is kept beside the control socket
// while the clone exists, and handed to the daemon. Zero numbers mean: the
// default, or what the metadata says.
type Definition struct {
	Name         string `json:"name"`
	Source       string `json:"source"`
	Dest         string `json:"dest"`
	Metadata     string `json:"metadata"`
	Size         int64  `json:"size"`        // bytes; 0: the source's
	RegionSize   int64  `json:"region_size"` // bytes
	Settings     Change `json:"settings"`    // those that were named
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

	Added
}

// Added is what a daemon adds to its definition once it knows, beside the sizes.
type Added struct {
	// Device is the block device, and Cookie what the driver keeps for its server, by which a
	// left-over device is known as this clone's.
	Device string `json:"device,omitempty"`
	Cookie uint64 `json:"mark,omitempty"` // its name of old: other releases read it
	// Unit is systemd's unit that the daemon is the main process of, "" if there is none.
	Unit string `json:"unit,omitempty"`
	// KeepMetadata is what the last finish was told.
	KeepMetadata bool `json:"keep_metadata,omitempty"`
	// Finished says that the destination stands alone: there is nothing to serve any more, and what
	// is left of the clone is to be removed.
	Finished bool `json:"finished,omitempty"`
}

// Start is a definition with what holds for this start only.
type Start struct {
	Definition Definition `json:"definition"`
	Create     bool       `json:"create"` // make new metadata
	Open       bool       `json:"open"`   // use the metadata that is there
	Force      bool       `json:"force"`
	Recover    bool       `json:"recover"` // take over the device that a dead daemon has left
	Replace    bool       `json:"replace"` // a living daemon is to leave it first
	DryRun     bool       `json:"dry_run"` // only say what would be (internal/engine/dry_run.go)
	Look       bool       `json:"look"`    // only say whether the living daemon could be replaced (package preflight)
	// Fence is how long a recovery may wait for the dead daemon's last requests; 0:
	// control.FenceLimit.
	Fence time.Duration `json:"fence,omitempty"`
}

// Bounds of the queues: the driver's own limit on the depth, and no more queues
// than make sense.
const (
	MaxQueues     = 64
	MaxQueueDepth = 4096
)

// Defaults of a definition.
//
// Regions of 4 KiB: a file system writes in such blocks, so nearly every write
// covers its regions whole and needs no copy, while the map costs 64 MiB for
// 1 TiB at most, kept sparse.
const (
	DefaultRegionSize = 4 << 10
	DefaultQueues     = 1
	DefaultQueueDepth = 64
)

// Bounds of a region, in bytes.
const (
	minRegionSize = metadata.MinRegionSize
	MaxRegionSize = metadata.MaxRegionSize
)

// leastZeros is from how many bytes on zeros of the source are not copied as data: small enough for
// what a file system leaves between its structures, large enough for a request of its own.
const leastZeros = 64 << 10

// LeastZeros is what lanes are told; 0 = never.
func (d *Definition) LeastZeros() int64 {
	if d.ZerosAsData {
		return 0
	}
	return leastZeros
}

// Check refuses what no clone can be.
func (d *Definition) Check() error {
	if err := errors.Join(CheckName(d.Name), d.checkLayer()); err != nil {
		return err
	}
	for _, p := range []struct{ flag, path string }{{"--source", d.Source}, {"--dest", d.Dest}, {"--metadata", d.Metadata}} {
		if p.path == "" {
			return UsageError(p.flag + " is missing")
		}
	}
	switch {
	case d.Settings.FinishAuto != nil && *d.Settings.FinishAuto && d.DM == "":
		return UsageError("--finish auto needs --dm: only a device-mapper device can lead users to the destination")
	case d.Queues < 1 || d.Queues > MaxQueues:
		return UsageError(fmt.Sprintf("--queues %d: it must be 1 to %d", d.Queues, MaxQueues))
	case d.QueueDepth < 1 || d.QueueDepth > MaxQueueDepth:
		return UsageError(fmt.Sprintf("--queue-depth %d: it must be 1 to %d", d.QueueDepth, MaxQueueDepth))
	}
	return nil
}

func CheckName(name string) error {
	if IsName(name) {
		return nil
	}
	if name == "" {
		return UsageError("the name of the clone is missing")
	}
	return UsageError(fmt.Sprintf("name %q: letters, digits and ._- are allowed, 64 at most, a letter or digit first", name))
}

// RegionSizePossible: a power of two within the bounds.
func RegionSizePossible(n int64) bool {
	return n&(n-1) == 0 && n >= minRegionSize && n <= MaxRegionSize
}

// Differences names what another definition of the same clone says otherwise;
// what it leaves open is no difference.
func (d *Definition) Differences(other *Definition) string {
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
		{"source shared", d.SourceShared, other.SourceShared}, {ZeroCopyFlag, !d.Copied, !other.Copied},
		{DetectZeroesFlag, !d.ZerosAsData, !other.ZerosAsData},
		{"dm device", cmp.Or(d.DM, "none"), cmp.Or(other.DM, "none")},
	} {
		if f.here != f.other {
			differ(f.what, f.here, f.other)
		}
	}
	if other.Size != 0 && d.Size != 0 && other.Size != d.Size {
		differ("size", text.ExactSize(d.Size), text.ExactSize(other.Size))
	}
	if other.RegionSize != 0 && d.RegionSize != 0 && other.RegionSize != d.RegionSize {
		differ("region size", text.ExactSize(d.RegionSize), text.ExactSize(other.RegionSize))
	}
	for _, k := range allKeys {
		here, named := k.get(&d.Settings)
		if !named {
			here = "not set"
		}
		if there, named := k.get(&other.Settings); named && there != here {
			differ(k.Name, here, there)
		}
	}
	return strings.Join(all, "; ")
}

// FirstSettings are those of a new clone; the region size is known. A clone by dm-clone's line
// behaves as dm-clone's would: no read-through.
func (d *Definition) FirstSettings() Settings {
	s := DefaultSettings(d.RegionSize)
	s.ReadThrough = d.Table == ""
	d.Settings.Apply(&s)
	return s
}

// UsageError is a complaint about the command line.
func UsageError(why string) error {
	return &exit.Error{Code: exit.Usage, Doing: "read the command line", Cause: errors.New(why), Next: "See `ublk-clone help`."}
}

// DeviceID is the number of the block device that the last daemon had.
func (d *Definition) DeviceID() (id int, err error) {
	if _, err := fmt.Sscanf(d.Device, "/dev/ublkb%d", &id); err != nil {
		return 0, &exit.Error{Code: exit.NoClone, Doing: "recover", Object: d.Name, Cause: errors.New("its daemon never had a block device"),
			Next: "Use `ublk-clone add`."}
	}
	return id, nil
}

// Fits refuses a block device that is not as the clone was defined.
func (d *Definition) Fits(size int64, depth int) error {
	if size == d.Size && depth == d.QueueDepth {
		return nil
	}
	return &exit.Error{Code: exit.Other, Doing: "recover", Object: d.Device,
		Cause: fmt.Errorf("it has %d bytes and queues of %d, the clone %d and %d", size, depth, d.Size, d.QueueDepth)}
}
