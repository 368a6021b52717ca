package definition

import (
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/text"
	"github.com/ublk-clone/ublk-clone/metadata"
)

func TestParseChange(t *testing.T) {
	for in, want := range map[string]string{
		"rate=50MiB":                             "rate=50MiB/s",
		"rate=50MiB/s":                           "rate=50MiB/s",
		"rate=1kB/s min-rate=8s/s":               "rate=1000/s min-rate=4KiB/s",
		"rate=none min-rate=0":                   "rate=none min-rate=none",
		"threshold=7 batch=3":                    "threshold=7 batch=3",
		"hydration-threshold=0":                  "threshold=0",
		"hydration_batch_size=1":                 "batch=1",
		"read-through=off discard_passdown=on":   "read-through=off discard-passdown=on",
		"retries=1000":                           "retries=1000",
		"retries=1 read_through=on rate=9999999": "rate=9999999/s read-through=on retries=1",
	} {
		c, err := ParseChange(strings.Fields(in))
		if err != nil || c.String() != want {
			t.Errorf("parseChange(%q) = %q, %v, want %q", in, c.String(), err, want)
			continue
		}
		again, err := ParseChange(strings.Fields(c.String()))
		if err != nil || again.String() != want {
			t.Errorf("%q, printed and read again, is %q, %v", in, again.String(), err)
		}
	}
}

func TestParseChangeRefuses(t *testing.T) {
	for in, says := range map[string]string{
		"":                                  "no key=value",
		"rate":                              "no value",
		"=1":                                "unknown key",
		"speed=1":                           `"speed=1": unknown key`,
		"rate=1 speed=1":                    "unknown key",
		"rate=":                             "not valid",
		"rate=-1":                           `"-1" is not valid`,
		"rate=1 rate=2":                     "rate is set twice",
		"threshold=1 hydration-threshold=1": "set twice",
		"threshold=-1":                      "0 to 4294967295",
		"threshold=4294967296":              "0 to 4294967295",
		"batch=0":                           "1 to 4294967295",
		"read-through=yes":                  "on or off",
		"discard-passdown=":                 "on or off",
		"retries=0":                         "1 to 1000",
		"retries=1001":                      "1 to 1000",
		"hydration=off":                     "unknown key", // that is pause
	} {
		c, err := ParseChange(strings.Fields(in))
		if exit.Code(err) != exit.Usage || !strings.Contains(err.Error(), says) || c != (Change{}) {
			t.Errorf("parseChange(%q) = %q, %v, want an error saying %q", in, c.String(), err, says)
		}
		for _, k := range Keys {
			if !strings.Contains(exit.Next(err), k.Name+" ("+k.Takes+")") {
				t.Errorf("parseChange(%q): the next step %q does not list %s", in, exit.Next(err), k.Name)
			}
		}
	}
}

// Every setting is in all of its places: changed, printed and kept.
func TestSettingsAreKept(t *testing.T) {
	c, err := ParseChange(strings.Fields("rate=1 min-rate=2 threshold=3 batch=4 read-through=on direct=on finish=auto discard-passdown=on retries=5 source-timeout=6s"))
	if err != nil {
		t.Fatal(err)
	}
	on := true
	c.Hydration = &on
	var s Settings
	c.Apply(&s)
	want := Settings{Hydration: true, DiscardPassdown: true, ReadThrough: true, Direct: true, FinishAuto: true, Rate: 1, MinRate: 2, Threshold: 3, Batch: 4, Retries: 5, SourceTimeout: 6}
	if s != want {
		t.Errorf("changed: %+v", s)
	}
	if got := FromMetadata(s.ToMetadata()); got != s {
		t.Errorf("kept: %+v", got)
	}
	if got := FromMetadata(metadata.Settings{}); got.Retries != defaultRetries {
		t.Errorf("metadata without retries: %+v", got)
	}
	if got := (Change{}); got.String() != "" {
		t.Errorf("no change: %q", got.String())
	}
}

func TestExactSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1: "1", 512: "512", 1024: "1KiB", 1025: "1025", 3 << 20: "3MiB", 1 << 30: "1GiB", 5 << 40: "5TiB", 1 << 50: "1024TiB"} {
		if got := text.ExactSize(n); got != want {
			t.Errorf("exactSize(%d) = %s, want %s", n, got, want)
		}
		if back, err := text.ParseSize(want); err != nil || back != n {
			t.Errorf("parseSize(%s) = %d, %v", want, back, err)
		}
	}
}
