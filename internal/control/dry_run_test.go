package control

import (
	"bytes"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/footprint"
)

// TestDryRunText: what is not known is not printed as a figure.
func TestDryRunText(t *testing.T) {
	rate, seconds := int64(100<<20), int64(200)
	full := DryRun{
		Name: "c", Source: DryRunPart{Path: "/dev/sdb", Size: 20 << 30}, Dest: DryRunPart{Path: "/dev/sdc", Size: 25 << 30}, Metadata: DryRunPart{Path: "/var/lib/c.meta", Size: 0}, New: true,
		DryRunShape: DryRunShape{Size: 20 << 30, RegionSize: 4096, Regions: 5 << 20, MetadataBytes: 2 << 20, Memory: footprint.Need{Start: 56 << 20, Most: 57 << 20}, ZeroCopy: true},
		DryRunCopy:  DryRunCopy{ToCopy: 15 << 30, Hydration: true, SourceRate: &rate, RateCap: 80 << 20, Seconds: &seconds}, Warnings: []string{strings.Repeat("word ", 30)},
	}
	for _, c := range []struct {
		change func(*DryRun)
		says   []string
	}{
		{func(*DryRun) {}, []string{"be new", "carries nothing known", "5242880 of 4 KiB", "56 MiB", "15 GiB; the other 5 GiB", "100 MiB/s", "cap 80 MiB/s", "3m20s",
			"would mean writing", "Nothing was changed"}},
		{func(t *DryRun) { t.New, t.Hydrated = false, 5<<30 }, []string{"go on, with 25.0 % hydrated"}},
		{func(t *DryRun) { t.New, t.Recover = false, true }, []string{"recovered from its dead daemon"}},
		{func(t *DryRun) { t.SourceRate, t.Seconds = nil, nil }, []string{"rate unknown", "time unknown"}},
		{func(t *DryRun) { t.Hydration, t.Seconds = false, nil }, []string{"hydration is off"}},
		{func(t *DryRun) { t.ToCopy = 0 }, []string{"nothing to copy"}},
		{func(t *DryRun) { t.Carries = "ext4" }, []string{"carries ext4"}},
		{func(t *DryRun) { t.ZeroCopy = false }, []string{"copies of requests"}},
		{func(t *DryRun) { t.Unchanged = true }, []string{"add would change nothing"}},
	} {
		tr := full
		c.change(&tr)
		var b bytes.Buffer
		if err := tr.Write(&b); err != nil {
			t.Fatal(err)
		}
		for _, says := range c.says {
			if !strings.Contains(strings.Join(strings.Fields(b.String()), " "), says) {
				t.Errorf("it does not say %q:\n%s", says, &b)
			}
		}
		for line := range strings.Lines(b.String()) {
			if len(line) > dryRunWidth+1 {
				t.Errorf("a line of %d columns: %s", len(line), line)
			}
		}
	}
}
