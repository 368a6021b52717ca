//go:build device

package devicetest

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The kernel's dm-clone and a clone of ours get the same table arguments, messages and requests,
// and their status lines must agree.

// pair is both.
type pair struct {
	m      *harness.Machine
	name   string // of the kernel's
	kernel *harness.Disk
	ours   *harness.Clone
	// defaults: threshold and batch were not set, and ours are larger.
	defaults bool
}

// newPair makes both from such arguments behind the devices, each with devices of its own.
func newPair(m *harness.Machine, size int64, args string) *pair {
	m.Helper()
	p := &pair{m: m, name: "kernel", defaults: !strings.Contains(args, "hydration_threshold")}
	table := func(role string) string {
		source := m.NullBlk(role+"src", harness.NullOptions{MiB: size / harness.MiB})
		dest := m.NullBlk(role+"dst", harness.NullOptions{MiB: size / harness.MiB, Discard: true})
		metadata := m.NullBlk(role+"meta", harness.NullOptions{MiB: 4})
		return fmt.Sprintf("0 %d clone %s %s %s %s", size/harness.Sector, metadata.Path, dest.Path, source.Path, args)
	}
	p.kernel = m.Mapper(p.name, table("k"))
	p.ours = &harness.Clone{M: m, Name: "test", Args: []string{"--table", table("o")}}
	m.Cleanup(p.ours.Abandon)
	p.ours.Add()
	return p
}

// both sends a message to both and expects the same outcome: success, or refusal.
func (p *pair) both(accepted bool, words ...string) {
	p.m.Helper()
	text := strings.Join(words, " ")
	if o := p.m.Try("dmsetup", append([]string{"message", p.name, "0"}, words...)...); (o.Code == 0) != accepted {
		p.m.Fatalf("dm-clone takes message %q: %v, expected %v: %s", text, o.Code == 0, accepted, o.Stderr)
	}
	o := p.m.Try(harness.Command, append([]string{"message", p.ours.Name, "0"}, words...)...)
	if want := map[bool]int{true: 0, false: exit.Usage}[accepted]; o.Code != want {
		p.m.Errorf("message %q: exit status %d, expected %d: %s", text, o.Code, want, o.Stderr)
	}
}

// request makes one request of both, and flushes it.
func (p *pair) request(do func(v *harness.Volume) error) {
	p.m.Helper()
	for _, path := range []string{p.kernel.Path, p.ours.Path} {
		v := p.m.Open(path, os.O_RDWR)
		if err := do(v); err != nil {
			p.m.Errorf("%s: %v", path, err)
		}
		if err := v.Flush(); err != nil {
			p.m.Errorf("%s: %v", path, err)
		}
		v.Close()
	}
}

// metadataBlocks is the field of the status that may differ: it counts the blocks of each one's own
// format.
var metadataBlocks = regexp.MustCompile(`^(\d+)/(\d+)$`)

// lines are the fields of both status lines, that of the metadata blocks checked and masked.
func (p *pair) lines() (kernel, ours []string) {
	p.m.Helper()
	const blocks = 4 // START LENGTH clone SIZE USED/TOTAL
	lines := [][]string{
		strings.Fields(p.m.MustRun("dmsetup", "status", p.name)),
		strings.Fields(p.m.MustRun(harness.Command, "status", p.ours.Name, "-o", "dm")),
	}
	for _, f := range lines {
		n := metadataBlocks.FindStringSubmatch(f[min(blocks, len(f)-1)])
		if n == nil {
			p.m.Fatalf("no metadata blocks in %q", strings.Join(f, " "))
		}
		used, _ := strconv.Atoi(n[1])
		if total, _ := strconv.Atoi(n[2]); used < 1 || used > total {
			p.m.Errorf("%d of %d metadata blocks are used", used, total)
		}
		f[blocks] = "USED/TOTAL"
		if p.defaults {
			for _, name := range []string{"hydration_threshold", "hydration_batch_size"} {
				if i := slices.Index(f, name); i >= 0 && i+1 < len(f) {
					f[i+1] = "DEFAULT"
				}
			}
		}
	}
	return lines[0], lines[1]
}

// agree waits until both are quiet, and compares.
func (p *pair) agree(after string) {
	p.m.Helper()
	var kernel, ours []string
	p.m.WaitFor(harness.HydrateLimit, "both to be quiet", func() error {
		kernel, ours = p.lines()
		const hydrating = 7
		for _, f := range [][]string{kernel, ours} {
			if len(f) <= hydrating || f[hydrating] != "0" {
				return fmt.Errorf("%q", strings.Join(f, " "))
			}
		}
		return nil
	})
	p.m.Logf("%s: %s", after, strings.Join(ours, " "))
	if k, o := strings.Join(kernel, " "), strings.Join(ours, " "); k != o {
		p.m.Errorf("%s:\ndm-clone %q\nours     %q", after, k, o)
	}
}

// tablesAgree compares what both print as their table, without the devices, which have other names.
func (p *pair) tablesAgree() {
	p.m.Helper()
	kernel, ours := strings.Fields(p.m.MustRun("dmsetup", "table", p.name)), strings.Fields(p.m.MustRun(harness.Command, "table", p.ours.Name))
	for _, f := range [][]string{kernel, ours} {
		if len(f) < 7 {
			p.m.Fatalf("table %q", strings.Join(f, " "))
		}
		f[3], f[4], f[5] = "METADATA", "DEST", "SOURCE"
	}
	if k, o := strings.Join(kernel, " "), strings.Join(ours, " "); k != o {
		p.m.Errorf("table of dm-clone %q, ours %q", k, o)
	}
}

func TestSideBySide(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	for name, args := range map[string]string{
		"Plain":    "8 1 no_hydration",
		"Features": "128 2 No_Hydration no_discard_passdown 4 hydration_threshold 16 hydration_batch_size 4",
	} {
		t.Run(name, func(t *testing.T) { testSideBySide(t, args) })
	}
}

func testSideBySide(t *testing.T, args string) {
	m := harness.New(t)
	if o := m.Try("modprobe", "dm-clone"); o.Code != 0 {
		t.Skipf("this kernel has no dm-clone to compare with: %s", strings.TrimSpace(o.Stderr))
	}
	const size = 8 * harness.MiB
	p := newPair(m, size, args)
	var region int64
	_, _ = fmt.Sscan(args, &region)
	region *= harness.Sector
	p.tablesAgree()
	p.agree("made")
	buf := m.Buffer(harness.IOSize)
	p.request(func(v *harness.Volume) error { return v.Write(buf[:region], 4*region) })
	p.request(func(v *harness.Volume) error { return v.Write(buf[:harness.Sector], 9*region+harness.Sector) })
	p.request(func(v *harness.Volume) error { return v.Write(buf[:3*region], 12*region+harness.Sector) })
	p.agree("a region, a sector, two regions and two halves written")
	p.request(func(v *harness.Volume) error { return v.Discard(32*region, 8*region) })
	p.request(func(v *harness.Volume) error { return v.Discard(48*region+harness.Sector, 4*region) })
	p.agree("11 regions and two halves discarded")
	p.request(func(v *harness.Volume) error { return v.Discard(60*region+harness.Sector, region-2*harness.Sector) })
	p.request(func(v *harness.Volume) error { return v.Discard(4*region, region) })
	p.agree("a part of a region and a hydrated one discarded")

	p.both(true, "hydration_threshold", "32")
	p.both(true, "hydration_batch_size", "8")
	p.defaults = false
	p.agree("settings changed")
	p.tablesAgree() // which is as it was made
	p.both(false, "hydration_threshold")
	p.both(false, "hydration_threshold", "many")
	p.both(false, "nonsense")
	p.both(true, "Enable_Hydration")
	p.both(true, "disable_hydration")
	p.both(true, "enable_hydration")
	m.WaitFor(harness.HydrateLimit, "both to be hydrated", func() error {
		kernel, ours := p.lines()
		whole := fmt.Sprintf("%d/%d", size/region, size/region)
		if kernel[6] != whole || ours[6] != whole {
			return fmt.Errorf("%s, %s, not %s", kernel[6], ours[6], whole)
		}
		return nil
	})
	p.agree("hydrated")
	p.both(true, "disable_hydration")
	p.agree("hydration switched off")
	p.ours.Del()
}
