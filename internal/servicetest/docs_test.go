//go:build service

package servicetest

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/docs"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestServiceDocuments runs the commands of the documents that need systemd, from top to bottom as
// they are printed.
func TestServiceDocuments(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	const root = "../.."
	build, err := filepath.Abs(filepath.Join(root, "build"))
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	for _, document := range docs.Service {
		blocks, err := docs.Blocks(root, document)
		if err != nil {
			t.Fatal(err)
		}
		g := newGuest(t, options{disks: map[string]int64{"old": size, "new": size, "old2": size, "new2": size}})
		g.boot()
		g.sh(`
			mkfs.ext4 -q ` + byID + `old
			mkfs.ext4 -q ` + byID + `old2
			mkdir /root/checkout
			ln -s /host` + build + ` /root/checkout/build`)
		for _, b := range blocks {
			if b.Language != "sh" {
				continue
			}
			o := g.try("bash", "-euo", "pipefail", "-c", "cd /root/checkout\n"+b.Script())
			t.Logf("%v took %v:\n%s%s%s", b, o.took, b.Script(), o.stdout, o.stderr)
			if o.code != 0 {
				t.Fatalf("%v: exit status %d", b, o.code)
			}
		}
		if left := g.run("ublk-clone", "list"); strings.Count(left, "\n") != 1 {
			t.Errorf("%s leaves clones:\n%s", document, left)
		}
	}
}
