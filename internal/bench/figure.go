// Package bench reads the figures that the measurements print (TestBench... in
// internal/devicetest), and judges what the project has set itself as goals. It is not part of
// ublk-clone: the program in its directory report makes docs/benchmarks.md of it.
//
// # From a measurement to the document
//
//	TestBench...  --"bench: {...}"-->  log of a guest  --Read-->  Set  --Judge-->  verdicts, tables, plots
//
// A figure is a line of its own in the log. One that is measured several times is printed several
// times, and counts with its median. What was not measured is said to be missing wherever it is
// asked for.
package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Candidates.
const (
	RawSource = "raw source"
	RawDest   = "raw destination"
	DMClone   = "dm-clone"
	Snapshot  = "dm-snapshot on raid1"
	Ours      = "ublk-clone"
)

// States of the regions that a job uses.
const (
	Unhydrated = "unhydrated"
	Hydrated   = "hydrated"
)

// Units. Those of latency have the job's mean without a suffix.
const (
	IOPS = "iops"
	MBps = "MB/s"
	Mean = "us"
	P50  = "us p50"
	P99  = "us p99"
	P999 = "us p99.9"
	// Cost is CPU time of the whole machine for a request, Daemon the part of it that the daemon's
	// threads take: on the counting clock, instructions.
	Cost   = "ns/request"
	Daemon = "ns/request daemon"
	// Calls is the system calls of the daemon for a request.
	Calls   = "calls/request"
	Seconds = "s"
	MiB     = "MiB"
)

// Key says what a figure is of.
type Key struct {
	Candidate string `json:"candidate"`
	State     string `json:"state,omitempty"`
	Setting   string `json:"setting,omitempty"` // of the candidate; "" = its defaults
	Job       string `json:"job"`
	Region    int64  `json:"region,omitempty"` // bytes
	Unit      string `json:"unit"`
}

func (k Key) String() string {
	words := []string{k.Candidate}
	for _, w := range []string{k.State, k.Setting, k.Job} {
		if w != "" {
			words = append(words, w)
		}
	}
	if k.Region > 0 {
		words = append(words, fmt.Sprintf("%d KiB regions", k.Region>>10))
	}
	return strings.Join(append(words, k.Unit), ", ")
}

// Figure is one that was measured.
type Figure struct {
	Kernel string `json:"kernel"`
	S      int    `json:"s"` // the devices are slower by this factor: the CPU stands for one of S GIPS
	Key
	Value float64 `json:"value"`
}

// mark stands before a figure in a log.
const mark = "bench: "

// Line is the figure as a log has it.
func (f Figure) Line() string {
	b, err := json.Marshal(f)
	if err != nil {
		panic(err) // NaN or infinite: no measurement
	}
	return mark + string(b)
}

// Setup is where figures can be compared: one guest, one run.
type Setup struct {
	Kernel string
	S      int
}

// Set holds all figures, by setup and key, in the order of their appearance.
type Set map[Setup]map[Key][]float64

// Read adds the figures of a log. A line that begins as a figure and is none is an error: it may be
// cut.
func (s Set) Read(log io.Reader) error {
	lines := bufio.NewScanner(log)
	for n := 1; lines.Scan(); n++ {
		_, text, found := strings.Cut(lines.Text(), mark+"{")
		if !found {
			continue
		}
		var f Figure
		d := json.NewDecoder(strings.NewReader("{" + text))
		d.DisallowUnknownFields()
		if err := d.Decode(&f); err != nil {
			return fmt.Errorf("read figure in line %d: %w", n, err)
		}
		if f.Kernel == "" || f.S < 1 || f.Candidate == "" || f.Job == "" || f.Unit == "" {
			return fmt.Errorf("read figure in line %d: incomplete: %s", n, text)
		}
		s.add(f)
	}
	return lines.Err()
}

func (s Set) add(f Figure) {
	at := Setup{f.Kernel, f.S}
	if s[at] == nil {
		s[at] = map[Key][]float64{}
	}
	s[at][f.Key] = append(s[at][f.Key], f.Value)
}

// Median of all repetitions; false: not measured.
func (s Set) Median(at Setup, k Key) (float64, bool) {
	all := slices.Sorted(slices.Values(s[at][k]))
	if len(all) == 0 {
		return 0, false
	}
	return all[len(all)/2], true
}

// Setups are those that there are figures of, S=4 first: the realistic core.
func (s Set) Setups() []Setup {
	var all []Setup
	for at := range s {
		all = append(all, at)
	}
	slices.SortFunc(all, func(a, b Setup) int {
		if a.S != b.S {
			return b.S - a.S
		}
		return strings.Compare(a.Kernel, b.Kernel)
	})
	return all
}
