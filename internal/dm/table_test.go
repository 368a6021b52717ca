package dm

import (
	"slices"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

const mib = 1 << 20

// TestMixed: a mixed table covers the whole device once, each target leads to its own place, and
// what was to be direct is found again in it.
func TestMixed(t *testing.T) {
	const size = 64*mib + 4096
	base, dest := sys.Mkdev(259, 1), sys.Mkdev(8, 16)
	for _, direct := range [][]Extent{
		nil, {{0, 4 * mib}}, {{4 * mib, 4 * mib}}, {{0, 8 * mib}, {16 * mib, 4 * mib}}, {{32 * mib, 32 * mib}}, {{0, size}},
	} {
		table, at := Mixed(size, base, dest, direct), uint64(0)
		for _, target := range table {
			if target.Start != at || target.Sectors == 0 || !leads(target, base) && !leads(target, dest) {
				t.Errorf("%v: %+v at sector %d", direct, target, at)
			}
			at += target.Sectors
		}
		l := Layer{table: table}
		if at*512 != size || l.Size() != size {
			t.Errorf("%v: the table ends at sector %d, of %d", direct, at, l.Size()/512)
		}
		found, ok := l.Direct(base, dest)
		if !ok || !slices.Equal(found, direct) {
			t.Errorf("%v: found %v, %v", direct, found, ok)
		}
		if elsewhere := l.Elsewhere(base); l.IsMixed() && !slices.Equal(elsewhere, direct) {
			t.Errorf("%v: elsewhere are %v", direct, elsewhere)
		}
		if l.Reaches(dest) != (len(direct) > 0) || l.Reaches(dest+1) {
			t.Errorf("%v: reaches the destination: %v", direct, l.Reaches(dest))
		}
		whole := len(direct) == 1 && direct[0].Length == size
		if l.LeadsTo(dest) != whole || l.LeadsTo(base) != (len(direct) == 0) || l.IsMixed() != (len(direct) > 0 && !whole) {
			t.Errorf("%v: leads to the destination: %v, to the block device: %v", direct, l.LeadsTo(dest), l.LeadsTo(base))
		}
	}
}

// TestForeignTable: nothing of a table that somebody else has loaded is taken for a direct extent.
func TestForeignTable(t *testing.T) {
	base, dest := sys.Mkdev(259, 1), sys.Mkdev(8, 16)
	for _, table := range [][]sys.DMTarget{
		nil, failing(8 * mib),
		{{Start: 0, Sectors: 8, Type: "linear", Params: "8:16 8"}},
		{{Start: 0, Sectors: 8, Type: "linear", Params: "259:1 0"}, {Start: 8, Sectors: 8, Type: "linear", Params: "8:16 0"}},
		{{Start: 0, Sectors: 8, Type: "linear", Params: "8:17 0"}},
		{{Start: 0, Sectors: 8, Type: "flakey", Params: "8:16 0 1 1"}},
	} {
		l := Layer{table: table}
		if direct, ok := l.Direct(base, dest); ok || l.LeadsTo(dest) || l.LeadsTo(base) {
			t.Errorf("%+v: %v", table, direct)
		}
	}
}
