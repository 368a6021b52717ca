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

	"github.com/ublk-clone/ublk-clone/internal/docs"
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

// TestDocuments runs the commands of the documents, those of each from top to bottom as they are printed. The disks that a
// document names are there, the sources with a file system.
func TestDocuments(t *testing.T) {
	const root = "../.."
	for _, document := range docs.Device {
		t.Run(filepath.Base(document), func(t *testing.T) {
			blocks, err := docs.Blocks(root, document)
			if err != nil {
				t.Fatal(err)
			}
			blocks = slices.DeleteFunc(blocks, func(b docs.Block) bool { return b.Language != "sh" })
			m := newMachine(t)
			m.dropLiveMaps() // what other tests have left by design
			var text strings.Builder
			for _, b := range blocks {
				text.WriteString(b.Text)
			}
			folder := m.checkout(root)
			m.provide(text.String())
			for _, b := range blocks {
				script := "cd " + folder + "\n" + b.Script()
				o := m.tryFor(documentLimit, "bash", "-euo", "pipefail", "-c", script)
				t.Logf("%v took %v:\n%s%s%s", b, o.took.Round(time.Millisecond), b.Script(), o.stdout, o.stderr)
				if o.code != 0 {
					t.Fatalf("%v: exit status %d", b, o.code)
				}
			}
			if left := devicesAndDaemons(); len(left) > 0 {
				t.Errorf("%s leaves %q", document, left)
			}
		})
	}
}

// provide makes the disks that a document names, and sees to it that nothing of its clones is left.
func (m *machine) provide(text string) {
	m.Helper()
	sources := map[string]bool{}
	for _, match := range namedSource.FindAllStringSubmatch(text, -1) {
		sources[match[1]] = true
	}
	names := namedDisk.FindAllString(text, -1)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		d := m.nullBlk(filepath.Base(name), nullOptions{mib: 64, discard: true})
		if err := os.Symlink(d.path, name); err != nil {
			m.Fatal(err)
		}
		m.Cleanup(func() { os.Remove(name) })
		if sources[name] {
			m.run("mkfs.ext4", "-q", name)
		}
	}
	m.Cleanup(func() {
		if m.Failed() {
			m.try("umount", "/mnt")
		}
		for _, match := range namedClone.FindAllStringSubmatch(text, -1) {
			c := &clone{m: m, name: match[1]}
			c.abandon()
			m.try("dmsetup", "remove", "--retry", c.name)
		}
		m.dropLiveMaps()
	})
}

// checkout makes a folder that looks like the root of the project, on a file system as users have one: the guest's own is
// an overlay, which clones refuse. /var/lib is there too.
func (m *machine) checkout(root string) string {
	m.Helper()
	d := m.nullBlk("docs", nullOptions{mib: 1024})
	m.run("mkfs.ext4", "-q", d.path)
	place := filepath.Join(m.dir, "ext4")
	folder, lib := filepath.Join(place, "ublk-clone"), filepath.Join(place, "lib")
	mount := func(args ...string) {
		m.run("mount", args...)
		m.Cleanup(func() { m.run("umount", args[len(args)-1]) })
	}
	if err := os.Mkdir(place, 0o755); err != nil {
		m.Fatal(err)
	}
	mount(d.path, place)
	if err := errors.Join(os.Mkdir(folder, 0o755), os.Mkdir(lib, 0o755)); err != nil {
		m.Fatal(err)
	}
	mount("--bind", lib, "/var/lib")
	for _, name := range []string{"README.md", "build"} {
		path, err := filepath.Abs(filepath.Join(root, name))
		if err == nil {
			err = os.Symlink(path, filepath.Join(folder, name))
		}
		if err != nil {
			m.Fatal(err)
		}
	}
	return folder
}
