package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// settings are what can be changed while the clone runs. They are kept in the metadata.
type settings struct {
	Hydration       bool   `json:"hydration"` // background hydration is on
	DiscardPassdown bool   `json:"discard_passdown"`
	ReadThrough     bool   `json:"read_through"`
	Rate            int64  `json:"rate"`                 // most that is copied, bytes a second; 0 = no cap
	MinRate         int64  `json:"min_rate"`             // least, also under users' requests; 0 = none
	Threshold       uint64 `json:"hydration_threshold"`  // regions
	Batch           uint64 `json:"hydration_batch_size"` // regions
	Retries         uint32 `json:"retries"`              // attempts for a region
	SourceTimeout   int64  `json:"source_timeout"`       // seconds without an answer that make an outage; 0 = none
}

// Defaults of a new clone. Background copies do not get smaller with the regions: threshold and batch
// are set from bytes.
const (
	defaultBatchBytes = 1 << 20 // a copy: long enough for a disk to stream
	defaultBatches    = 4       // copies at a time: enough to keep a disk busy, few enough not to fill its queue
	defaultMinRate    = 1 << 20
	defaultRetries    = 6
	// defaultSourceTimeout is longer than any device that works takes for a request, and as long as SCSI's own limit, in seconds.
	defaultSourceTimeout = 30
)

func defaultSettings(regionSize int64) settings {
	batch := uint64(max(1, defaultBatchBytes/regionSize))
	return settings{
		Hydration: true, DiscardPassdown: true, ReadThrough: true, MinRate: defaultMinRate, Retries: defaultRetries,
		Batch: batch, Threshold: batch * defaultBatches, SourceTimeout: defaultSourceTimeout,
	}
}

// fromMetadata reads kept settings. Metadata of an earlier version have no retries, and no source timeout.
func fromMetadata(m metadata.Settings) settings {
	s := settings{
		Hydration: !m.Paused, DiscardPassdown: m.DiscardPassdown, ReadThrough: m.ReadThrough, Rate: m.Rate, MinRate: m.MinRate,
		Threshold: m.Threshold, Batch: m.Batch, Retries: m.Retries,
	}
	if s.Retries == 0 {
		s.Retries = defaultRetries
	}
	switch m.SourceTimeout {
	case 0:
		s.SourceTimeout = defaultSourceTimeout
	case metadata.NoTimeout:
	default:
		s.SourceTimeout = int64(m.SourceTimeout)
	}
	return s
}

// toMetadata is what is kept.
func (s settings) toMetadata() metadata.Settings {
	timeout := uint32(s.SourceTimeout)
	switch s.SourceTimeout {
	case 0:
		timeout = metadata.NoTimeout
	case defaultSourceTimeout:
		timeout = 0
	}
	return metadata.Settings{
		Paused: !s.Hydration, DiscardPassdown: s.DiscardPassdown, ReadThrough: s.ReadThrough, Rate: s.Rate, MinRate: s.MinRate,
		Threshold: s.Threshold, Batch: s.Batch, Retries: s.Retries, SourceTimeout: timeout,
	}
}

// forHydrator is what package hydrate takes of them.
func (s settings) forHydrator() hydrate.Settings {
	return hydrate.Settings{Enabled: s.Hydration, Threshold: s.Threshold, Batch: s.Batch, Rate: s.Rate, MinRate: s.MinRate, Retries: s.Retries}
}

// change names settings with their new values; nil ones stay as they are.
type change struct {
	Hydration       *bool   `json:"hydration,omitempty"`
	DiscardPassdown *bool   `json:"discard_passdown,omitempty"`
	ReadThrough     *bool   `json:"read_through,omitempty"`
	Rate            *int64  `json:"rate,omitempty"`
	MinRate         *int64  `json:"min_rate,omitempty"`
	Threshold       *uint64 `json:"hydration_threshold,omitempty"`
	Batch           *uint64 `json:"hydration_batch_size,omitempty"`
	Retries         *uint32 `json:"retries,omitempty"`
	SourceTimeout   *int64  `json:"source_timeout,omitempty"`
}

// hydration is the change that switches background hydration.
func hydration(on bool) change { return change{Hydration: &on} }

// apply makes the change in s.
func (c *change) apply(s *settings) {
	put(&s.Hydration, c.Hydration)
	put(&s.DiscardPassdown, c.DiscardPassdown)
	put(&s.ReadThrough, c.ReadThrough)
	put(&s.Rate, c.Rate)
	put(&s.MinRate, c.MinRate)
	put(&s.Threshold, c.Threshold)
	put(&s.Batch, c.Batch)
	put(&s.Retries, c.Retries)
	put(&s.SourceTimeout, c.SourceTimeout)
}

func put[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// check refuses a change that `set` does not make: of nothing, or to what is not possible.
func (c *change) check() error {
	if *c == (change{}) {
		return changeError("", "nothing is to be changed")
	}
	for _, k := range allKeys {
		if value, ok := k.get(c); ok {
			if err := k.set(new(change), value); err != nil {
				return changeError(k.name, err.Error())
			}
		}
	}
	return nil
}

// String is the change as `set` takes it: "rate=50MiB read-through=off".
func (c *change) String() string {
	var words []string
	for _, k := range allKeys {
		if value, ok := k.get(c); ok {
			words = append(words, k.name+"="+value)
		}
	}
	return strings.Join(words, " ")
}

// key is one setting as the command line has it.
type key struct {
	name, alias string
	takes       string // what values are possible
	set         func(*change, string) error
	get         func(*change) (value string, ok bool)
}

// keys are those of `set`; allKeys has hydration too, which pause and resume switch.
var (
	keys = []key{
		newKey("rate", "", "SIZE a second, or none", func(c *change) **int64 { return &c.Rate }, parseRate, formatRate),
		newKey("min-rate", "", "SIZE a second, or none", func(c *change) **int64 { return &c.MinRate }, parseRate, formatRate),
		newKey("threshold", "hydration-threshold", "0 to 4294967295 regions", func(c *change) **uint64 { return &c.Threshold }, parseRegions, formatCount),
		newKey("batch", "hydration-batch-size", "1 to 4294967295 regions", func(c *change) **uint64 { return &c.Batch }, parseBatch, formatCount),
		newKey("read-through", "", "on or off", func(c *change) **bool { return &c.ReadThrough }, parseSwitch, formatSwitch),
		newKey("discard-passdown", "", "on or off", func(c *change) **bool { return &c.DiscardPassdown }, parseSwitch, formatSwitch),
		newKey("retries", "", fmt.Sprintf("1 to %d attempts", maxRetries), func(c *change) **uint32 { return &c.Retries }, parseRetries, formatCount),
		newKey("source-timeout", "", "1s to 24h, or none", func(c *change) **int64 { return &c.SourceTimeout }, parseTimeout, formatTimeout),
	}
	allKeys = append(slices.Clone(keys), newKey("hydration", "", "on or off", func(c *change) **bool { return &c.Hydration }, parseSwitch, formatSwitch))
)

func newKey[T any](name, alias, takes string, field func(*change) **T, parse func(string) (T, bool), format func(T) string) key {
	return key{
		name: name, alias: alias, takes: takes,
		set: func(c *change, text string) error {
			v, ok := parse(text)
			if !ok {
				return fmt.Errorf("%q is not possible: %s", text, takes)
			}
			*field(c) = &v
			return nil
		},
		get: func(c *change) (string, bool) {
			if v := *field(c); v != nil {
				return format(*v), true
			}
			return "", false
		},
	}
}

// findKey gives the key of that name or alias; the names are dm-clone's too.
func findKey(name string) (key, bool) {
	name = strings.ReplaceAll(name, "_", "-")
	for _, k := range keys {
		if name == k.name || name == k.alias && k.alias != "" {
			return k, true
		}
	}
	return key{}, false
}

// keyList names the keys and what they take.
func keyList() string {
	list := make([]string, len(keys))
	for i, k := range keys {
		list[i] = k.name + " (" + k.takes + ")"
	}
	return strings.Join(list, ", ")
}

// parseChange reads the words key=value of `set`; a wrong one, and none of them is good.
func parseChange(words []string) (c change, err error) {
	if len(words) == 0 {
		return c, changeError("", "no key=value")
	}
	for _, word := range words {
		name, value, ok := strings.Cut(word, "=")
		k, known := findKey(name)
		switch {
		case !known:
			return change{}, changeError(word, "unknown key")
		case !ok:
			return change{}, changeError(word, "no value")
		}
		if _, twice := k.get(&c); twice {
			return change{}, changeError(word, k.name+" is set twice")
		}
		if err := k.set(&c, value); err != nil {
			return change{}, changeError(word, err.Error())
		}
	}
	return c, nil
}

func changeError(word, why string) error {
	e := usage(why).(*exit.Error)
	e.Doing, e.Next = "set", "Nothing was changed. Keys are: "+keyList()+"."
	if word != "" {
		e.Object = fmt.Sprintf("%q", word)
	}
	return e
}

// parseRate reads bytes a second: a size, with or without "/s"; none and 0 are 0.
func parseRate(word string) (int64, bool) {
	if word == "none" {
		return 0, true
	}
	n, err := parseSize(strings.TrimSuffix(word, "/s"))
	return n, err == nil
}

// formatRate is exact, and parseRate reads it.
func formatRate(n int64) string {
	if n == 0 {
		return "none"
	}
	return exactSize(n) + "/s"
}

// parseRegions reads as many regions as dm-clone can count.
func parseRegions(text string) (uint64, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return n, err == nil
}

func parseBatch(text string) (uint64, bool) {
	n, ok := parseRegions(text)
	return n, ok && n > 0
}

// maxRetries is more than anybody waits for: the pause between two grows.
const maxRetries = 1000

func parseRetries(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n > 0 && n <= maxRetries
}

// maxTimeout is more than anybody waits for, in seconds.
const maxTimeout = 24 * 60 * 60

// parseTimeout reads a time of whole seconds; none and 0 are 0.
func parseTimeout(text string) (int64, bool) {
	if text == "none" || text == "0" {
		return 0, true
	}
	d, err := time.ParseDuration(text)
	seconds := int64(d / time.Second)
	return seconds, err == nil && d%time.Second == 0 && seconds >= 1 && seconds <= maxTimeout
}

// formatTimeout is exact, and parseTimeout reads it.
func formatTimeout(seconds int64) string {
	if seconds == 0 {
		return "none"
	}
	return strconv.FormatInt(seconds, 10) + "s"
}

func formatCount[T uint32 | uint64](n T) string { return strconv.FormatUint(uint64(n), 10) }

func parseSwitch(text string) (on, ok bool) { return text == "on", text == "on" || text == "off" }

func formatSwitch(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
