package dm

import (
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/metadata"
)

// TestLayerUUID: a layer is known by the whole of its UUID.
func TestLayerUUID(t *testing.T) {
	clone := metadata.UUID{1, 2, 3, 15: 16}
	text := Prefix + clone.String()
	if got := UUIDOf(text); got != clone {
		t.Errorf("%s is of %s", text, got)
	}
	l := Layer{Clone: clone}
	if !l.IsOf(clone.Mark()) || l.IsOf(clone.Mark()+1) || (&Layer{}).IsOf(0) {
		t.Error("whose layer it is")
	}
	for _, other := range []string{"", Prefix, text[:len(text)-1], text + "0", "x" + text, strings.TrimPrefix(text, Prefix), "LVM-" + clone.String()} {
		if got := UUIDOf(other); got != (metadata.UUID{}) {
			t.Errorf("%q is of %s", other, got)
		}
	}
}
