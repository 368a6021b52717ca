package definition

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// TableForm is dm-clone's line in a device-mapper table. LENGTH and REGION are 512-byte sectors,
// the numbers of a core argument regions.
const TableForm = "0 LENGTH clone METADATA DEST SOURCE REGION [#FEATURES FEATURE... [#ARGS KEY VALUE...]]"

// dm-clone's words for features; those of core arguments are those of its messages.
const (
	NoHydration       = "no_hydration"
	NoDiscardPassdown = "no_discard_passdown"
)

// Bounds of dm-clone's line: a region in sectors, words of the two groups.
const (
	minRegionSectors = minRegionSize / SectorSize
	maxRegionSectors = MaxRegionSize / SectorSize
	maxFeatures      = 2
	maxCoreWords     = 4
)

const SectorSize = 512

// table is a line as it was read.
type table struct {
	Size                   int64 // bytes
	Metadata, Dest, Source string
	RegionSize             int64    // bytes
	args                   []string // the words behind SOURCE, as they stand
	Settings               Change   // what the features and core arguments say
}

// ParseTable reads dm-clone's line. An error names the word and what is possible in its place.
func ParseTable(line string) (table, error) {
	words, err := splitTable(line)
	if err != nil {
		return table{}, err
	}
	r := tableReader{words: words}
	r.number("start", 0, 0)
	t := table{Size: int64(r.number("length", 1, math.MaxInt64/SectorSize)) * SectorSize}
	if target := r.word("target"); target != "clone" {
		r.fail("it must be clone")
	}
	t.Metadata, t.Dest, t.Source = r.word("metadata device"), r.word("destination device"), r.word("source device")
	if r.err == nil {
		t.args = words[r.read:]
	}
	t.RegionSize = r.regionSize()
	r.features(&t.Settings)
	r.coreArgs(&t.Settings)
	if r.err == nil && r.read < len(words) {
		r.word("word")
		r.fail("nothing may follow")
	}
	return t, r.err
}

// String is the line, one space between words.
func (t *table) String() string {
	words := []string{"0", strconv.FormatInt(t.Size/SectorSize, 10), "clone", escape(t.Metadata), escape(t.Dest), escape(t.Source)}
	for _, a := range t.args {
		words = append(words, escape(a))
	}
	return strings.Join(words, " ")
}

// tableReader takes word after word. Behind the first error it takes none.
type tableReader struct {
	words []string
	read  int // words so far
	what  string
	err   error
}

// more says whether words are left.
func (r *tableReader) more() bool { return r.err == nil && r.read < len(r.words) }

// word is the next word, which is to be what.
func (r *tableReader) word(what string) string {
	if r.err != nil {
		return ""
	}
	r.what = what
	if r.read == len(r.words) {
		r.err = fmt.Errorf("word %d, the %s, is missing", r.read+1, what)
		return ""
	}
	r.read++
	return r.words[r.read-1]
}

// fail is about the word read last.
func (r *tableReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("word %d, the %s %q: %s", r.read, r.what, r.words[r.read-1], fmt.Sprintf(format, args...))
	}
}

// number is the next word as a decimal number in [low, high].
func (r *tableReader) number(what string, low, high uint64) uint64 {
	text := r.word(what)
	n, err := strconv.ParseUint(text, 10, 64)
	switch {
	case err == nil && low <= n && n <= high:
		return n
	case low == high:
		r.fail("it must be %d", low)
	default:
		r.fail("it must be a number from %d to %d", low, high)
	}
	return 0
}

// regionSize is in bytes.
func (r *tableReader) regionSize() int64 {
	n := r.number("region size", minRegionSectors, maxRegionSectors)
	if n&(n-1) != 0 {
		r.fail("it must be a power of two from %d to %d sectors", minRegionSectors, maxRegionSectors)
	}
	return int64(n) * SectorSize
}

// features is the first group, in which words are of any case.
func (r *tableReader) features(c *Change) {
	if !r.more() {
		return
	}
	for n := r.number("number of features", 0, maxFeatures); n > 0 && r.err == nil; n-- {
		off := false
		switch strings.ToLower(r.word("feature")) {
		case NoHydration:
			c.Hydration = &off
		case NoDiscardPassdown:
			c.DiscardPassdown = &off
		default:
			r.fail("it must be %s or %s", NoHydration, NoDiscardPassdown)
		}
	}
}

// coreArgs is the second group: pairs of a key and a number of regions.
func (r *tableReader) coreArgs(c *Change) {
	if !r.more() {
		return
	}
	n := r.number("number of core argument words", 0, maxCoreWords)
	if n%2 != 0 {
		r.fail("it counts keys and values, two for each argument")
	}
	for ; n > 0 && r.err == nil; n -= 2 {
		switch strings.ToLower(r.word("core argument")) {
		case HydrationThreshold:
			threshold := r.number(HydrationThreshold, 0, math.MaxUint32)
			c.Threshold = &threshold
		case HydrationBatchSize:
			batch := r.number(HydrationBatchSize, 1, math.MaxUint32)
			c.Batch = &batch
		default:
			r.fail("it must be %s or %s", HydrationThreshold, HydrationBatchSize)
		}
	}
}

// tableSpace is what separates words (isspace in C).
const tableSpace = " \t\n\v\f\r"

// splitTable separates the words as device-mapper does (dm_split_args, drivers/md/dm-table.c): at
// white space, where a backslash makes the next character part of the word.
func splitTable(line string) (words []string, err error) {
	var word strings.Builder
	inWord, quoted := false, false
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quoted:
			word.WriteByte(c)
			quoted = false
		case c == '\\':
			inWord, quoted = true, true
		case !strings.ContainsRune(tableSpace, rune(c)):
			inWord = true
			word.WriteByte(c)
		case inWord:
			words, inWord = append(words, word.String()), false
			word.Reset()
		}
	}
	if quoted {
		return nil, errors.New("nothing follows the backslash at its end")
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

// escape writes a word so that splitTable reads it as one.
func escape(word string) string {
	var b strings.Builder
	for i := 0; i < len(word); i++ {
		if word[i] == '\\' || strings.ContainsRune(tableSpace, rune(word[i])) {
			b.WriteByte('\\')
		}
		b.WriteByte(word[i])
	}
	return b.String()
}

// AsTable is the definition as dm-clone's line: what it was made from, not the live settings. The
// daemon has noted its sizes.
func (d *Definition) AsTable() string {
	if d.Table != "" {
		return d.Table
	}
	t := table{Size: d.Size, Metadata: d.Metadata, Dest: d.Dest, Source: d.Source}
	var features, core []string
	if s := d.Settings.Hydration; s != nil && !*s {
		features = append(features, NoHydration)
	}
	if s := d.Settings.DiscardPassdown; s != nil && !*s {
		features = append(features, NoDiscardPassdown)
	}
	if s := d.Settings.Threshold; s != nil {
		core = append(core, HydrationThreshold, formatCount(*s))
	}
	if s := d.Settings.Batch; s != nil {
		core = append(core, HydrationBatchSize, formatCount(*s))
	}
	t.args = []string{strconv.FormatInt(d.RegionSize/SectorSize, 10)}
	if len(features)+len(core) > 0 {
		t.args = append(append(t.args, strconv.Itoa(len(features))), features...)
	}
	if len(core) > 0 {
		t.args = append(append(t.args, strconv.Itoa(len(core))), core...)
	}
	return t.String()
}
