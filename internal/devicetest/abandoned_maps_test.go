//go:build device

package devicetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestAbandonedMaps: a live map whose clone is gone stays as long as its metadata may need it, through any number of prunes
// and adds of others; when the metadata is past its session it goes by itself; and prune --force says what it gives up.
func TestAbandonedMaps(t *testing.T) {
	runs.On(t, "6.12")
	b := newLiveMapBench(t)
	kept := func(when string, want int) []string {
		t.Helper()
		all, _ := filepath.Glob(liveMaps + "/*")
		found, _ := filepath.Glob(liveMaps + "/*.map*")
		if len(found) != want || want == 0 && len(all) > 0 {
			t.Errorf("%s there are %v, not %d", when, all, want)
		}
		return found
	}
	b.scatter()
	b.m.run(command, "del", b.name, "--force")
	b.m.run(command, "prune")
	left := kept("after del and prune of a dead clone", 1)

	// It is a copy of a map whose session has ended in order, as a daemon leaves that is killed between its clean mark and
	// the removal.
	copied := filepath.Join(b.m.dir, "map")
	b.m.run("cp", "--sparse=always", left[0], copied)
	b.add()
	b.model.check(b.m, b.path)
	b.del()
	kept("after a del in order", 0)
	b.m.run("cp", "--sparse=always", copied, left[0])
	if err := os.WriteFile(filepath.Join(liveMaps, "00.map.new"), []byte("begun"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.m.run(command, "prune")
	kept("when the metadata is past the session", 0)

	// With the metadata away nobody can tell.
	b.add()
	b.scatter()
	b.m.run(command, "del", b.name, "--force")
	metadata := b.m.readFile(b.metadata.path)
	b.m.writeFile(b.metadata.path, strings.Repeat("\x00", len(metadata)))
	b.m.run(command, "prune")
	kept("with the metadata away", 1)
	b.m.writeFile(b.metadata.path, metadata)
	b.add()
	b.model.check(b.m, b.path)

	b.scatter()
	b.m.run(command, "del", b.name, "--force")
	o := b.m.try(command, "prune", "--force")
	b.m.must(o, command, "prune", "--force")
	if !strings.Contains(o.stderr, b.metadata.path) || !strings.Contains(o.stderr, "lost") {
		t.Errorf("prune --force says %q", o.stderr)
	}
	kept("after prune --force", 0)
	b.m.expectFailure(b.m.try(command, append([]string{"add", b.name}, b.args...)...), 10, "live map", "--force")
	if left, _ := os.ReadDir(runDir); len(left) > 0 {
		b.m.run(command, "prune")
	}
	b.args = append(b.args, "--force")
	b.add()
	b.del()
}
