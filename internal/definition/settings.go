package definition

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/text"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// Settings are what can be changed while the clone runs. They are kept in the metadata.
type Settings struct {
	Hydration       bool   `json:"hydration"` // background hydration is on
	DiscardPassdown bool   `json:"discard_passdown"`
	ReadThrough     bool   `json:"read_through"`
	Direct          bool   `json:"direct"`               // a layer leads what is hydrated straight to the destination
	FinishAuto      bool   `json:"finish_auto"`          // a clone with a layer finishes by itself when it is complete
	Rate            int64  `json:"rate"`                 // most that is copied, bytes a second; 0 = no cap
	MinRate         int64  `json:"min_rate"`             // least, also under users' requests; 0 = none
	Threshold       uint64 `json:"hydration_threshold"`  // regions
	Batch           uint64 `json:"hydration_batch_size"` // regions
	Retries         uint32 `json:"retries"`              // attempts for a region
	SourceTimeout   int64  `json:"source_timeout"`       // seconds without an answer that make an outage; 0 = none
}

// Defaults of a new clone. Background copies do not get smaller with the regions: threshold and
// batch are set from bytes.
const (
	DefaultBatchBytes = 1 << 20 // a copy: long enough for a disk to stream
	DefaultBatches    = 4       // copies at a time: enough to keep a disk busy, few enough not to fill its queue
	defaultMinRate    = 1 << 20
	defaultRetries    = 6
	// DefaultSourceTimeout is longer than any device that works takes for a request, and as long as
	// SCSI's own limit, in seconds.
	DefaultSourceTimeout = 30
)

func DefaultSettings(regionSize int64) Settings {
	batch := uint64(max(1, DefaultBatchBytes/regionSize))
	return Settings{
		Hydration: true, DiscardPassdown: true, ReadThrough: true, Direct: true, MinRate: defaultMinRate, Retries: defaultRetries,
		Batch: batch, Threshold: batch * DefaultBatches, SourceTimeout: DefaultSourceTimeout,
	}
}

// FromMetadata reads kept settings. Metadata of an earlier version have no retries, and no source
// timeout.
func FromMetadata(m metadata.Settings) Settings {
	s := Settings{
		Hydration: !m.Paused, DiscardPassdown: m.DiscardPassdown, ReadThrough: m.ReadThrough, Direct: !m.Indirect, FinishAuto: m.FinishAuto, Rate: m.Rate, MinRate: m.MinRate,
		Threshold: m.Threshold, Batch: m.Batch, Retries: m.Retries,
	}
	if s.Retries == 0 {
		s.Retries = defaultRetries
	}
	switch m.SourceTimeout {
	case 0:
		s.SourceTimeout = DefaultSourceTimeout
	case metadata.NoTimeout:
	default:
		s.SourceTimeout = int64(m.SourceTimeout)
	}
	return s
}

// ToMetadata is what is kept.
func (s Settings) ToMetadata() metadata.Settings {
	timeout := uint32(s.SourceTimeout)
	switch s.SourceTimeout {
	case 0:
		timeout = metadata.NoTimeout
	case DefaultSourceTimeout:
		timeout = 0
	}
	return metadata.Settings{
		Paused: !s.Hydration, DiscardPassdown: s.DiscardPassdown, ReadThrough: s.ReadThrough, Indirect: !s.Direct, FinishAuto: s.FinishAuto, Rate: s.Rate, MinRate: s.MinRate,
		Threshold: s.Threshold, Batch: s.Batch, Retries: s.Retries, SourceTimeout: timeout,
	}
}

// ForHydrator is what package hydrate takes of them.
func (s Settings) ForHydrator() hydrate.Settings {
	return hydrate.Settings{Enabled: s.Hydration, Threshold: s.Threshold, Batch: s.Batch, Rate: s.Rate, MinRate: s.MinRate, Retries: s.Retries}
}

// Change names settings with their new values; nil ones stay as they are.
type Change struct {
	Hydration       *bool   `json:"hydration,omitempty"`
	DiscardPassdown *bool   `json:"discard_passdown,omitempty"`
	ReadThrough     *bool   `json:"read_through,omitempty"`
	Direct          *bool   `json:"direct,omitempty"`
	FinishAuto      *bool   `json:"finish_auto,omitempty"`
	Rate            *int64  `json:"rate,omitempty"`
	MinRate         *int64  `json:"min_rate,omitempty"`
	Threshold       *uint64 `json:"hydration_threshold,omitempty"`
	Batch           *uint64 `json:"hydration_batch_size,omitempty"`
	Retries         *uint32 `json:"retries,omitempty"`
	SourceTimeout   *int64  `json:"source_timeout,omitempty"`
}

// Hydration is the change that switches background hydration.
func Hydration(on bool) Change { return Change{Hydration: &on} }

// Apply makes the change in s.
func (c *Change) Apply(s *Settings) {
	put(&s.Hydration, c.Hydration)
	put(&s.DiscardPassdown, c.DiscardPassdown)
	put(&s.ReadThrough, c.ReadThrough)
	put(&s.Direct, c.Direct)
	put(&s.FinishAuto, c.FinishAuto)
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

// Check refuses a change that `set` does not make: of nothing, or to what is not possible.
func (c *Change) Check() error {
	if *c == (Change{}) {
		return changeError("", "there is nothing to change")
	}
	for _, k := range allKeys {
		if value, ok := k.get(c); ok {
			if err := k.Set(new(Change), value); err != nil {
				return changeError(k.Name, err.Error())
			}
		}
	}
	return nil
}

// String is the change as `set` takes it: "rate=50MiB read-through=off".
func (c *Change) String() string {
	var words []string
	for _, k := range allKeys {
		if value, ok := k.get(c); ok {
			words = append(words, k.Name+"="+value)
		}
	}
	return strings.Join(words, " ")
}

// key is one setting as the command line has it.
type key struct {
	Name, Alias string
	Takes       string // what values are possible
	Set         func(*Change, string) error
	get         func(*Change) (value string, ok bool)
}

// Keys are those of `set`; allKeys has hydration too, which pause and resume switch.
var (
	Keys = []key{
		newKey("rate", "", "SIZE a second, or none", func(c *Change) **int64 { return &c.Rate }, parseRate, formatRate),
		newKey("min-rate", "", "SIZE a second, or none", func(c *Change) **int64 { return &c.MinRate }, parseRate, formatRate),
		newKey("threshold", "hydration-threshold", "0 to 4294967295 regions", func(c *Change) **uint64 { return &c.Threshold }, parseRegions, formatCount),
		newKey("batch", "hydration-batch-size", "1 to 4294967295 regions", func(c *Change) **uint64 { return &c.Batch }, parseBatch, formatCount),
		newKey("read-through", "", "on or off", func(c *Change) **bool { return &c.ReadThrough }, ParseSwitch, FormatSwitch),
		newKey("direct", "", "on or off", func(c *Change) **bool { return &c.Direct }, ParseSwitch, FormatSwitch),
		newKey("finish", "", "auto or manual", func(c *Change) **bool { return &c.FinishAuto }, parseFinish, FormatFinish),
		newKey("discard-passdown", "", "on or off", func(c *Change) **bool { return &c.DiscardPassdown }, ParseSwitch, FormatSwitch),
		newKey("retries", "", fmt.Sprintf("1 to %d attempts", MaxRetries), func(c *Change) **uint32 { return &c.Retries }, parseRetries, formatCount),
		newKey("source-timeout", "", "1s to 24h, or none", func(c *Change) **int64 { return &c.SourceTimeout }, ParseTimeout, FormatTimeout),
	}
	allKeys = append(slices.Clone(Keys), newKey("hydration", "", "on or off", func(c *Change) **bool { return &c.Hydration }, ParseSwitch, FormatSwitch))
)

func newKey[T any](name, alias, takes string, field func(*Change) **T, parse func(string) (T, bool), format func(T) string) key {
	return key{
		Name: name, Alias: alias, Takes: takes,
		Set: func(c *Change, text string) error {
			v, ok := parse(text)
			if !ok {
				return fmt.Errorf("%q is not valid: it must be %s", text, takes)
			}
			*field(c) = &v
			return nil
		},
		get: func(c *Change) (string, bool) {
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
	for _, k := range Keys {
		if name == k.Name || name == k.Alias && k.Alias != "" {
			return k, true
		}
	}
	return key{}, false
}

// KeyList names the keys and what they take.
func KeyList() string {
	list := make([]string, len(Keys))
	for i, k := range Keys {
		list[i] = k.Name + " (" + k.Takes + ")"
	}
	return strings.Join(list, ", ")
}

// ParseChange reads the words key=value of `set`; a wrong one, and none of them is good.
func ParseChange(words []string) (c Change, err error) {
	if len(words) == 0 {
		return c, changeError("", "no key=value")
	}
	for _, word := range words {
		name, value, ok := strings.Cut(word, "=")
		k, known := findKey(name)
		switch {
		case !known:
			return Change{}, changeError(word, "unknown key")
		case !ok:
			return Change{}, changeError(word, "no value")
		}
		if _, twice := k.get(&c); twice {
			return Change{}, changeError(word, k.Name+" is set twice")
		}
		if err := k.Set(&c, value); err != nil {
			return Change{}, changeError(word, err.Error())
		}
	}
	return c, nil
}

func changeError(word, why string) error {
	e := UsageError(why).(*exit.Error)
	e.Doing, e.Next = "set", "Nothing was changed. Keys are: "+KeyList()+"."
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
	n, err := text.ParseSize(strings.TrimSuffix(word, "/s"))
	return n, err == nil
}

// formatRate is exact, and parseRate reads it.
func formatRate(n int64) string {
	if n == 0 {
		return "none"
	}
	return text.ExactSize(n) + "/s"
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

// MaxRetries is more than anybody waits for: the pause between two grows.
const MaxRetries = 1000

func parseRetries(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n > 0 && n <= MaxRetries
}

// maxTimeout is more than anybody waits for, in seconds.
const maxTimeout = 24 * 60 * 60

// ParseTimeout reads a time of whole seconds; none and 0 are 0.
func ParseTimeout(text string) (int64, bool) {
	if text == "none" || text == "0" {
		return 0, true
	}
	d, err := time.ParseDuration(text)
	seconds := int64(d / time.Second)
	return seconds, err == nil && d%time.Second == 0 && seconds >= 1 && seconds <= maxTimeout
}

// FormatTimeout is exact, and ParseTimeout reads it.
func FormatTimeout(seconds int64) string {
	if seconds == 0 {
		return "none"
	}
	return strconv.FormatInt(seconds, 10) + "s"
}

func parseFinish(text string) (auto, ok bool) {
	return text == "auto", text == "auto" || text == "manual"
}

// FormatFinish says who finishes the clone.
func FormatFinish(auto bool) string {
	if auto {
		return "auto"
	}
	return "manual"
}

func formatCount[T uint32 | uint64](n T) string { return strconv.FormatUint(uint64(n), 10) }

func ParseSwitch(text string) (on, ok bool) { return text == "on", text == "on" || text == "off" }

func FormatSwitch(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
