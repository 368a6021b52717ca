package clone

import "testing"

// TestRecentWrites: the first writes are told, and later ones take their place now and then.
func TestRecentWrites(t *testing.T) {
	l := &Lane{}
	c := &Core{lanes: lanes{list: []*Lane{l}}}
	l.changes.recent.add(4097, 4096)
	if got := c.RecentWrites(nil); len(got) != 1 || got[0] != (WrittenStretch{4096, 8192}) {
		t.Fatalf("after one write: %v", got)
	}
	for i := range int64(recentWrites * recentStride) {
		l.changes.recent.add(i<<20, 512)
	}
	got := c.RecentWrites(nil)
	if len(got) != recentWrites {
		t.Fatalf("%d writes are told, expected %d", len(got), recentWrites)
	}
	for _, s := range got {
		if s.Off < 1<<20 || s.Length != 4096 {
			t.Errorf("an old write is still told, or a wrong one: %v", s)
		}
	}
	if n := testing.AllocsPerRun(100, func() { l.changes.recent.add(8192, 4096) }); n != 0 {
		t.Errorf("%v allocations a write", n)
	}
}
