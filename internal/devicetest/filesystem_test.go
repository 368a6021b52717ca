//go:build device

package devicetest

import (
	"fmt"
	"hash/crc64"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// fsKind is a kind of file system, small ones included.
type fsKind struct {
	name  string   // as mount knows it, and the kernel's module
	mkfs  []string // before the device
	check []string // before the device; finds nothing to mend, or fails
}

var (
	ext4  = fsKind{"ext4", []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-f", "-n"}}
	xfs   = fsKind{"xfs", []string{"mkfs.xfs", "-q", "-f", "--unsupported"}, []string{"xfs_repair", "-n"}}
	btrfs = fsKind{"btrfs", []string{"mkfs.btrfs", "-q", "-f", "--mixed"}, []string{"btrfs", "check", "--readonly"}}
)

// fileTree is a mounted file system with files and the checksum that each must have.
type fileTree struct {
	m       *machine
	kind    fsKind
	options string // of mount
	root    string
	sums    map[string]uint64 // by path below root
	size    map[string]int64
}

// othersFolder, below the root, is where other users have their files.
const othersFolder = "others"

// newExt4 is newFiles on ext4.
func (m *machine) newExt4(rng *rand.Rand, d *disk, bytes int64) *fileTree {
	m.Helper()
	return m.newFiles(ext4, rng, d, bytes)
}

// newFiles makes a file system with files of so many bytes together on a device, and leaves it unmounted.
func (m *machine) newFiles(kind fsKind, rng *rand.Rand, d *disk, bytes int64) *fileTree {
	m.Helper()
	m.run(kind.mkfs[0], append(kind.mkfs[1:], d.path)...)
	t := &fileTree{m: m, kind: kind, sums: map[string]uint64{}, size: map[string]int64{}}
	t.mount(d.path)
	for i := 0; t.bytes() < bytes; i++ {
		size := rng.Int64N(64 * kib)
		if i%8 == 0 {
			size = rng.Int64N(2 * mib)
		}
		t.write(rng, fmt.Sprintf("d%d/f%d", i%7, i), size)
	}
	t.unmount()
	return t
}

// ext4Folder is an empty folder of a file system on a null_blk device of so many MiB. Direct I/O to its
// files is real, in blocks of 512 bytes.
func (m *machine) ext4Folder(mib int64) string {
	m.Helper()
	backing := m.nullBlk("folder", nullOptions{mib: mib})
	m.run("mkfs.ext4", "-q", "-F", backing.path)
	t := &fileTree{m: m, kind: ext4}
	t.mount(backing.path)
	return t.root
}

// mount mounts the device; it is unmounted when the test ends, or by unmount.
func (t *fileTree) mount(path string) {
	t.m.Helper()
	t.m.try("modprobe", t.kind.name) // where it is not built in
	root, err := os.MkdirTemp(t.m.dir, "mnt")
	if err == nil {
		err = unix.Mount(path, root, t.kind.name, 0, t.options)
	}
	if err != nil {
		t.m.Fatalf("mount %s: %v", path, err)
	}
	t.root = root
	t.m.Cleanup(func() { t.m.unmountAnyway(root) })
}

// unmountAnyway unmounts after a test that has failed. If nobody answers the device it waits until whoever cleans up
// next has ended that.
func (m *machine) unmountAnyway(root string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = unix.Unmount(root, 0) // the test has failed, with a better reason
	}()
	select {
	case <-done:
	case <-time.After(cleanLimit):
		m.Logf("%s is not unmounted yet", root)
	}
}

func (t *fileTree) unmount() {
	t.m.Helper()
	if err := unix.Unmount(t.root, 0); err != nil {
		t.m.Fatalf("unmount %s: %v", t.root, err)
	}
}

// write writes a file of random bytes in place, without emptying it first, and notes its checksum.
func (t *fileTree) write(rng *rand.Rand, name string, size int64) {
	t.m.Helper()
	path := filepath.Join(t.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.m.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.m.Fatal(err)
	}
	b := make([]byte, size)
	for i := 0; i+8 <= len(b); i += 8 {
		le.PutUint64(b[i:], rng.Uint64())
	}
	if _, err := f.Write(b); err != nil {
		t.m.Fatal(err)
	}
	if err := f.Truncate(size); err != nil { // it may have been longer
		t.m.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.m.Fatal(err)
	}
	t.sums[name], t.size[name] = crc64.Checksum(b, ecma), size
}

// remove removes a file.
func (t *fileTree) remove(name string) {
	t.m.Helper()
	if err := os.Remove(filepath.Join(t.root, name)); err != nil {
		t.m.Fatal(err)
	}
	delete(t.sums, name)
	delete(t.size, name)
}

// names are the files, sorted.
func (t *fileTree) names() []string {
	names := make([]string, 0, len(t.sums))
	for name := range t.sums {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// bytes is how many all files hold.
func (t *fileTree) bytes() int64 {
	var n int64
	for _, size := range t.size {
		n += size
	}
	return n
}

// change overwrites a share of the bytes in place, removes a few files and makes new ones.
func (t *fileTree) change(rng *rand.Rand, share float64) {
	t.m.Helper()
	names := t.names()
	rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	goal, written := int64(share*float64(t.bytes())), int64(0)
	for i, name := range names {
		if written >= goal {
			break
		}
		size := t.size[name]
		t.write(rng, name, size)
		written += size
		if i%10 == 0 {
			t.remove(name)
			t.write(rng, fmt.Sprintf("new/%d", i), size)
		}
	}
	t.m.Logf("overwrote %d of %d KiB in files", written/kib, t.bytes()/kib)
}

// sync makes what was written durable.
func (t *fileTree) sync() {
	t.m.Helper()
	f, err := os.Open(t.root)
	if err == nil {
		err = unix.Syncfs(int(f.Fd()))
		f.Close()
	}
	if err != nil {
		t.m.Fatal(err)
	}
}

// check reads every file from the device, not from memory, and compares; there must be no more, but in
// othersFolder.
// between is called after each file and may be nil.
func (t *fileTree) check(between func(done, of int)) {
	t.m.Helper()
	t.sync()
	t.m.dropCaches()
	names := t.names()
	for i, name := range names {
		b, err := os.ReadFile(filepath.Join(t.root, name))
		if err != nil {
			t.m.Fatal(err)
		}
		if int64(len(b)) != t.size[name] || crc64.Checksum(b, ecma) != t.sums[name] {
			t.m.Fatalf("file %s of %d bytes is not what was written", name, t.size[name])
		}
		if between != nil {
			between(i+1, len(names))
		}
	}
	found := 0
	walked := filepath.WalkDir(t.root, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && e.Name() == othersFolder {
			return filepath.SkipDir
		}
		if e.Type().IsRegular() {
			found++
		}
		return nil
	})
	if walked != nil {
		t.m.Fatal(walked)
	}
	if found != len(names) {
		t.m.Fatalf("%d files, expected %d", found, len(names))
	}
}

// examine lets the file system's own tool look for damage.
func (t *fileTree) examine(path string) {
	t.m.Helper()
	t.m.run(t.kind.check[0], append(t.kind.check[1:], path)...)
}
