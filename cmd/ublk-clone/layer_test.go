package main

import (
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// TestLayerUUID: a layer is known by the whole of its UUID.
func TestLayerUUID(t *testing.T) {
	clone := metadata.UUID{1, 2, 3, 15: 16}
	text := layerPrefix + clone.String()
	if got := layerUUID(text); got != clone {
		t.Errorf("%s is of %s", text, got)
	}
	l := layer{uuid: clone}
	if !l.isOf(clone.Mark()) || l.isOf(clone.Mark()+1) || (&layer{}).isOf(0) {
		t.Error("whose layer it is")
	}
	for _, other := range []string{"", layerPrefix, text[:len(text)-1], text + "0", "x" + text, strings.TrimPrefix(text, layerPrefix), "LVM-" + clone.String()} {
		if got := layerUUID(other); got != (metadata.UUID{}) {
			t.Errorf("%q is of %s", other, got)
		}
	}
}

func TestLayerNames(t *testing.T) {
	for name, right := range map[string]bool{
		"": true, "data": true, "vg-data_1.x:y": true, strings.Repeat("x", 127): true,
		".": false, "..": false, "control": false, "a/b": false, "a b": false, "ä": false, strings.Repeat("x", 128): false,
	} {
		def := definition{DM: name}
		if err := def.checkLayer(); (err == nil) != right || err != nil && exit.Code(err) != exit.Usage {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestFinishOrder: what the clone is not ready for changes nothing, and what goes wrong leaves it up.
func TestFinishOrder(t *testing.T) {
	broken := &exit.Error{Code: exit.Refused, Doing: "finish"}
	for _, c := range []struct {
		name             string
		dm               string
		unfinished, busy error
		handed           int
		finished         bool
	}{
		{name: "not complete", dm: "x", unfinished: broken},
		{name: "handover fails", dm: "x", busy: broken, handed: 1},
		{name: "handed over", dm: "x", handed: 1, finished: true},
	} {
		e := newFakeEngine()
		e.unfinished, e.busy = c.unfinished, c.busy
		d := newDaemon(runDir(t.TempDir()), start{Definition: definition{Name: "c", DM: c.dm, Dest: "/dev/d"}}, e, zerolog.Nop())
		d.enter(phaseUp)
		err := d.finish(&stopRequest{verb: verbFinish, keepMetadata: true, wait: time.Second}, nil)
		if (err == nil) != c.finished || e.handed != c.handed || e.finished != c.finished {
			t.Errorf("%s: %v, handed over %d times, finished %t", c.name, err, e.handed, e.finished)
		}
		if up := d.mu.phase == phaseUp; up == c.finished {
			t.Errorf("%s: phase %d", c.name, d.mu.phase)
		}
		if def, err := d.dir.load("c"); c.handed > 0 && (err != nil || !def.KeepMetadata) {
			t.Errorf("%s: the definition does not say that the metadata stay: %+v, %v", c.name, def, err)
		}
	}
}
