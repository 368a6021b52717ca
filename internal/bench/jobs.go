package bench

import "fmt"

// Names of the jobs, as figures have them: direction, size of a request, depth.
const (
	WriteLatency = "randwrite 4k qd1"
	ReadLatency  = "randread 4k qd1"
	WriteIOPS    = "randwrite 4k qd32"
	ReadIOPS     = "randread 4k qd32"
	WriteMBps    = "write 256k qd32"
	ReadMBps     = "read 256k qd32"

	Mixed     = "randrw 70/30 4k qd32"
	Hydration = "hydration"
	FirstRead = "add to first read"
	RSS       = "memory VmRSS"
	PSS       = "memory Pss"
)

// Published are the six jobs of dm-clone's published figures, with the unit that each is about.
var Published = []struct{ Job, Unit string }{
	{WriteLatency, Mean}, {ReadLatency, Mean}, {WriteIOPS, IOPS}, {ReadIOPS, IOPS}, {WriteMBps, MBps}, {ReadMBps, MBps},
}

// Regions are the sizes of the published figures, in bytes.
var Regions = []int64{4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10}

// Sweep is the subset of 4 KiB to 1 MiB at depths 1 to 32 that is measured: the ends and the middle
// of the sizes.
var Sweep = struct {
	Directions []string
	Sizes      []int64
	Depths     []int
}{
	[]string{"read", "randread", "write", "randwrite"}, []int64{4 << 10, 64 << 10, 1 << 20}, []int{1, 4, 32},
}

// SourceSizes are of the sequential reads of which the best is what the source can do.
var SourceSizes = []int64{256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20}

// JobName is the name of a plain job.
func JobName(direction string, size int64, depth int) string {
	if size >= 1<<20 {
		return fmt.Sprintf("%s %dm qd%d", direction, size>>20, depth)
	}
	return fmt.Sprintf("%s %dk qd%d", direction, size>>10, depth)
}

// SourceDepth is of the reads of SourceSizes: enough to keep the disk busy.
const SourceDepth = 4

// Settings of hydration that are measured besides the defaults.
const (
	Tuned256  = "threshold 256, batch 256"
	Tuned1024 = "threshold 1024, batch 256"
	TunedDeep = "threshold 1024, batch 1024"
	Gentle    = "gentle"
	Wide      = "defaults, source of depth 64" // not in the table
)

// Tuned are those that dm-clone's best is taken of.
var Tuned = []string{Tuned256, Tuned1024, TunedDeep}

// Beside is the name of what runs while readers of unhydrated regions read at that depth.
func Beside(job string, readers int) string {
	return fmt.Sprintf("%s beside readers qd%d", job, readers)
}

// BesideWriter is hydration while a writer writes.
const BesideWriter = "hydration beside a writer"

// StartSizes of devices whose start is measured; they stand in the place of a setting.
var StartSizes = []string{"1 GiB", "1 TiB", "16 TiB"}

// Reader is the name of the readers themselves, beside hydration or without.
func Reader(depth int, hydration bool) string {
	if hydration {
		return fmt.Sprintf("reader qd%d beside hydration", depth)
	}
	return fmt.Sprintf("reader qd%d alone", depth)
}

// Writer is the name of a writer of whole unhydrated regions at depth 1.
func Writer(hydration bool) string {
	if hydration {
		return "writer beside hydration"
	}
	return "writer alone"
}

// Kinds are the requests whose cost in CPU time is measured, at depth 32.
const (
	KindRead        = "4k read"
	KindWrite       = "4k write"
	KindWholeRegion = "4k write of a whole region"
	KindSourceRead  = "4k read of the source"
	KindPartOf      = "4k write of a part of a region"
)
