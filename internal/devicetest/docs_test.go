//go:build device

package devicetest

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/docs"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// documentLimit is for one block of a document.
const documentLimit = 3 * time.Minute

var (
	// namedDisk is a disk that a document names.
	namedDisk = regexp.MustCompile(`/dev/(?:sd[a-z]|nvme[0-9]n1)\b`)
	// namedSource is a source: of add, or of dm-clone's line.
	namedSource = regexp.MustCompile(`(?:--source|clone /dev/\S+ /dev/\S+) (/dev/[a-z0-9]+)`)
	// namedClone is a clone that a document makes.
	namedClone = regexp.MustCompile(`ublk-clone add ([a-z]+)`)
)

// TestDocuments runs the commands of the documents, those of each from top to bottom as they are
// printed. The disks that a document names are there, the sources with a file system.
func TestDocuments(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	const root = "../.."
	for _, document := range docs.Device {
		t.Run(filepath.Base(document), func(t *testing.T) {
			blocks, err := docs.Blocks(root, document)
			if err != nil {
				t.Fatal(err)
			}
			blocks = slices.DeleteFunc(blocks, func(b docs.Block) bool { return b.Language != "sh" })
			m := harness.New(t)
			m.DropLiveMaps() // what other tests have left by design
			var text strings.Builder
			for _, b := range blocks {
				text.WriteString(b.Text)
			}
			dir := checkout(m, root)
			provide(m, text.String())
			for _, b := range blocks {
				script := "cd " + dir + "\n" + b.Script()
				o := m.TryFor(documentLimit, "bash", "-euo", "pipefail", "-c", script)
				t.Logf("%v took %v:\n%s%s%s", b, o.Took.Round(time.Millisecond), b.Script(), o.Stdout, o.Stderr)
				if o.Code != 0 {
					t.Fatalf("%v: exit status %d", b, o.Code)
				}
			}
			if left := devicesAndDaemons(); len(left) > 0 {
				t.Errorf("%s leaves %q", document, left)
			}
		})
	}
}

// provide makes the disks that a document names, and sees to it that nothing of its clones is left.
func provide(m *harness.Machine, text string) {
	m.Helper()
	sources := map[string]bool{}
	for _, match := range namedSource.FindAllStringSubmatch(text, -1) {
		sources[match[1]] = true
	}
	names := namedDisk.FindAllString(text, -1)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		d := m.NullBlk(filepath.Base(name), harness.NullOptions{MiB: 64, Discard: true})
		if err := os.Symlink(d.Path, name); err != nil {
			m.Fatal(err)
		}
		m.Cleanup(func() { _ = os.Remove(name) })
		if sources[name] {
			m.MustRun("mkfs.ext4", "-q", name)
		}
	}
	m.Cleanup(func() {
		if m.Failed() {
			m.Try("umount", "/mnt")
		}
		for _, match := range namedClone.FindAllStringSubmatch(text, -1) {
			c := &harness.Clone{M: m, Name: match[1]}
			c.Abandon()
			m.Try("dmsetup", "remove", "--retry", c.Name)
		}
		m.DropLiveMaps()
	})
}

// checkout makes a directory that looks like the root of the project, on a file system as users
// have one: the guest's own is an overlay, which clones refuse. /var/lib is there too.
func checkout(m *harness.Machine, root string) string {
	m.Helper()
	d := m.NullBlk("docs", harness.NullOptions{MiB: 1024})
	m.MustRun("mkfs.ext4", "-q", d.Path)
	place := filepath.Join(m.Dir, "ext4")
	dir, lib := filepath.Join(place, "ublk-clone"), filepath.Join(place, "lib")
	mount := func(args ...string) {
		m.MustRun("mount", args...)
		m.Cleanup(func() { m.MustRun("umount", args[len(args)-1]) })
	}
	if err := os.Mkdir(place, 0o755); err != nil {
		m.Fatal(err)
	}
	mount(d.Path, place)
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(lib, 0o755)); err != nil {
		m.Fatal(err)
	}
	mount("--bind", lib, "/var/lib")
	for _, name := range []string{"README.md", "build"} {
		path, err := filepath.Abs(filepath.Join(root, name))
		if err == nil {
			err = os.Symlink(path, filepath.Join(dir, name))
		}
		if err != nil {
			m.Fatal(err)
		}
	}
	return dir
}
