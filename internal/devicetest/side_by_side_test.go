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

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The kernel's dm-clone and a clone of ours get the same table arguments, messages and requests, and their
// status lines must agree.

// pair is both.
type pair struct {
	m      *machine
	name   string // of the kernel's
	kernel *disk
	ours   *clone
	// defaults: threshold and batch were not set, and ours are larger.
	defaults bool
}

// newPair makes both from such arguments behind the devices, each with devices of its own.
func (m *machine) newPair(size int64, args string) *pair {
	m.Helper()
	p := &pair{m: m, name: "kernel", defaults: !strings.Contains(args, "hydration_threshold")}
	table := func(role string) string {
		source := m.nullBlk(role+"src", nullOptions{mib: size / mib})
		dest := m.nullBlk(role+"dst", nullOptions{mib: size / mib, discard: true})
		metadata := m.nullBlk(role+"meta", nullOptions{mib: 4})
		return fmt.Sprintf("0 %d clone %s %s %s %s", size/sector, metadata.path, dest.path, source.path, args)
	}
	p.kernel = m.mapper(p.name, table("k"))
	p.ours = &clone{m: m, name: "test", args: []string{"--table", table("o")}}
	m.Cleanup(p.ours.abandon)
	p.ours.add()
	return p
}

// both sends a message to both and expects the same outcome: success, or refusal.
func (p *pair) both(accepted bool, words ...string) {
	p.m.Helper()
	text := strings.Join(words, " ")
	if o := p.m.try("dmsetup", append([]string{"message", p.name, "0"}, words...)...); (o.code == 0) != accepted {
		p.m.Fatalf("dm-clone takes message %q: %v, expected %v: %s", text, o.code == 0, accepted, o.stderr)
	}
	o := p.m.try(command, append([]string{"message", p.ours.name, "0"}, words...)...)
	if want := map[bool]int{true: 0, false: exit.Usage}[accepted]; o.code != want {
		p.m.Errorf("message %q: exit status %d, expected %d: %s", text, o.code, want, o.stderr)
	}
}

// request makes one request of both, and flushes it.
func (p *pair) request(do func(v *volume) error) {
	p.m.Helper()
	for _, path := range []string{p.kernel.path, p.ours.path} {
		v := p.m.open(path, os.O_RDWR)
		if err := do(v); err != nil {
			p.m.Errorf("%s: %v", path, err)
		}
		if err := v.flush(); err != nil {
			p.m.Errorf("%s: %v", path, err)
		}
		v.close()
	}
}

// metadataBlocks is the field of the status that may differ: it counts the blocks of each one's own format.
var metadataBlocks = regexp.MustCompile(`^(\d+)/(\d+)$`)

// lines are the fields of both status lines, that of the metadata blocks checked and masked.
func (p *pair) lines() (kernel, ours []string) {
	p.m.Helper()
	const blocks = 4 // START LENGTH clone SIZE USED/TOTAL
	lines := [][]string{
		strings.Fields(p.m.run("dmsetup", "status", p.name)),
		strings.Fields(p.m.run(command, "status", p.ours.name, "-o", "dm")),
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
	p.m.waitFor(hydrateLimit, "both to be quiet", func() error {
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
	kernel, ours := strings.Fields(p.m.run("dmsetup", "table", p.name)), strings.Fields(p.m.run(command, "table", p.ours.name))
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
	runs.On(t, "6.18")
	for name, args := range map[string]string{
		"Plain":    "8 1 no_hydration",
		"Features": "128 2 No_Hydration no_discard_passdown 4 hydration_threshold 16 hydration_batch_size 4",
	} {
		t.Run(name, func(t *testing.T) { testSideBySide(t, args) })
	}
}

func testSideBySide(t *testing.T, args string) {
	m := newMachine(t)
	if o := m.try("modprobe", "dm-clone"); o.code != 0 {
		t.Skipf("this kernel has no dm-clone to compare with: %s", strings.TrimSpace(o.stderr))
	}
	const size = 8 * mib
	p := m.newPair(size, args)
	var region int64
	fmt.Sscan(args, &region)
	region *= sector
	p.tablesAgree()
	p.agree("made")
	buf := m.buffer(ioSize)
	p.request(func(v *volume) error { return v.write(buf[:region], 4*region) })
	p.request(func(v *volume) error { return v.write(buf[:sector], 9*region+sector) })
	p.request(func(v *volume) error { return v.write(buf[:3*region], 12*region+sector) })
	p.agree("a region, a sector, two regions and two halves written")
	p.request(func(v *volume) error { return v.discard(32*region, 8*region) })
	p.request(func(v *volume) error { return v.discard(48*region+sector, 4*region) })
	p.agree("11 regions and two halves discarded")
	p.request(func(v *volume) error { return v.discard(60*region+sector, region-2*sector) })
	p.request(func(v *volume) error { return v.discard(4*region, region) })
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
	m.waitFor(hydrateLimit, "both to be hydrated", func() error {
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
	p.ours.del()
}
