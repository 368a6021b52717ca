package livemap

import (
	"os"
	"path/filepath"
	"testing"
)

// TestCollect: what is in use stays, whatever anybody says; of the rest what nobody needs goes, and
// what was never completed.
func TestCollect(t *testing.T) {
	dir := t.TempDir()
	create := func(n byte, life Life) *Map {
		t.Helper()
		m, err := Create(dir, Identity{UUID: [16]byte{n}, Regions: 100}, State{})
		if err != nil {
			t.Fatal(err)
		}
		if m.Life() != LifeMade {
			t.Errorf("a new map's life is %d", m.Life())
		}
		m.SetLife(life)
		m.SetMetadata("/var/lib/meta")
		return m
	}
	used := create(1, LifeEnded)
	defer used.Close()
	for n, life := range map[byte]Life{2: LifeBegun, 3: LifeEnded} {
		if err := create(n, life).Close(); err != nil {
			t.Fatal(err)
		}
	}
	left := func(path string) string { // its maker is dead
		t.Helper()
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	begun, again := left(filepath.Join(dir, "04.map.new")), left(Path(dir, [16]byte{1})+newSuffix)
	stray, made := left(filepath.Join(dir, "07.zeros")), left(filepath.Join(dir, "05.zeros"))
	making, err := openInUse(filepath.Join(dir, "05.map.new"), os.O_RDWR|os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	defer making.Close()
	damaged := Path(dir, [16]byte{6})
	if err := os.WriteFile(damaged, []byte("of another version"), 0o600); err != nil {
		t.Fatal(err)
	}
	asked := map[byte]bool{}
	err = Collect(dir, func(u Unused) bool {
		asked[u.UUID[0]] = true
		if (u.Map == nil) != (u.Path == damaged) {
			t.Errorf("%s: the map is %v", u.Path, u.Map)
		}
		if u.Map != nil && u.Metadata() != "/var/lib/meta" {
			t.Errorf("%s: the metadata is %q", u.Path, u.Metadata())
		}
		return u.Map != nil && u.Life() == LifeEnded
	})
	if err != nil {
		t.Fatal(err)
	}
	if asked[1] || !asked[2] || !asked[3] || !asked[6] {
		t.Errorf("asked about %v", asked)
	}
	for name, want := range map[string]bool{
		Path(dir, [16]byte{1}): true, Path(dir, [16]byte{2}): true, Path(dir, [16]byte{3}): false, begun: false, making.Name(): true, damaged: true,
		zerosPath(Path(dir, [16]byte{1})): true, zerosPath(Path(dir, [16]byte{2})): true, zerosPath(Path(dir, [16]byte{3})): false,
		again: false, stray: false, made: true,
	} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	m, err := Open(dir, [16]byte{2})
	if err != nil || m.Life() != LifeBegun {
		t.Fatalf("%v, %v", m, err)
	}
	m.Close()
}
