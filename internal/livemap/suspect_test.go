package livemap

import (
	"reflect"
	"slices"
	"testing"
)

// TestSuspects: what a daemon has noted is what the next one finds.
func TestSuspects(t *testing.T) {
	if size := reflect.TypeFor[trouble]().Size(); size > block {
		t.Fatalf("%d bytes do not fit the block", size)
	}
	dir := directory(t)
	m := newTestMap(t, dir)
	if _, ok := m.Suspect(); ok || m.Deaths() != 0 || len(m.Blames()) != 0 {
		t.Error("a new map has suspects")
	}
	r := Request{Op: 3, Off: 4096, Length: 512}
	m.SetSuspect(Request{Op: 1, Off: 1})
	m.ClearSuspect()
	m.SetSuspect(r)
	m.SetDeaths(5)
	var blames []Blame
	for i := range uint32(MaxBlames + 3) {
		blames = append(blames, Blame{Request: r, Deaths: i})
	}
	m.SetBlames(blames)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := Open(dir, whose.UUID)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if got, ok := m.Suspect(); !ok || got != r || m.Deaths() != 5 {
		t.Errorf("suspect %+v, %d deaths", got, m.Deaths())
	}
	if !slices.Equal(m.Blames(), blames[3:]) {
		t.Errorf("blames %+v", m.Blames())
	}
	m.ClearSuspect()
	if _, ok := m.Suspect(); ok {
		t.Error("a suspect after ClearSuspect")
	}
}
