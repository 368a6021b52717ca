//go:build device

package devicetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestAbandonedMaps: a live map whose clone is gone stays as long as its metadata may need it,
// through any number of prunes and adds of others; when the metadata is past its session it goes by
// itself; and prune --force says what it gives up.
func TestAbandonedMaps(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	b := newLiveMapBench(t)
	kept := func(when string, want int) []string {
		t.Helper()
		all, _ := filepath.Glob(harness.LiveMaps + "/*")
		found, _ := filepath.Glob(harness.LiveMaps + "/*.map*")
		if len(found) != want || want == 0 && len(all) > 0 {
			t.Errorf("%s there are %v, not %d", when, all, want)
		}
		return found
	}
	b.scatter()
	b.M.MustRun(harness.Command, "del", b.Name, "--force")
	b.M.MustRun(harness.Command, "prune")
	left := kept("after del and prune of a dead clone", 1)

	// It is a copy of a map whose session has ended in order, as a daemon leaves that is killed
	// between its clean flag and the removal.
	copied := filepath.Join(b.M.Dir, "map")
	b.M.MustRun("cp", "--sparse=always", left[0], copied)
	b.Add()
	b.model.Check(b.M, b.Path)
	if err := os.WriteFile(filepath.Join(harness.LiveMaps, "00.zeros"), nil, 0o600); err != nil { // of another clone's, killed behind the removal of its map
		t.Fatal(err)
	}
	b.Del()
	kept("after a del in order", 0)
	b.M.MustRun("cp", "--sparse=always", copied, left[0])
	if err := os.WriteFile(filepath.Join(harness.LiveMaps, "00.map.new"), []byte("begun"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.M.MustRun(harness.Command, "prune")
	kept("when the metadata is past the session", 0)

	// With the metadata away nobody can tell.
	b.Add()
	b.scatter()
	b.M.MustRun(harness.Command, "del", b.Name, "--force")
	metadata := b.M.ReadFile(b.metadata.Path)
	b.M.WriteFile(b.metadata.Path, strings.Repeat("\x00", len(metadata)))
	b.M.MustRun(harness.Command, "prune")
	kept("with the metadata away", 1)
	b.M.WriteFile(b.metadata.Path, metadata)
	b.Add()
	b.model.Check(b.M, b.Path)

	b.scatter()
	b.M.MustRun(harness.Command, "del", b.Name, "--force")
	o := b.M.Try(harness.Command, "prune", "--force")
	b.M.Must(o, harness.Command, "prune", "--force")
	if !strings.Contains(o.Stderr, b.metadata.Path) || !strings.Contains(o.Stderr, "lost") {
		t.Errorf("prune --force says %q", o.Stderr)
	}
	kept("after prune --force", 0)
	b.M.ExpectFailure(b.M.Try(harness.Command, append([]string{"add", b.Name}, b.Args...)...), 10, "live map", "--force")
	if left, _ := os.ReadDir(harness.RunDir); len(left) > 0 {
		b.M.MustRun(harness.Command, "prune")
	}
	b.Args = append(b.Args, "--force")
	b.Add()
	b.Del()
}
