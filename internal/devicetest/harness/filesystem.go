package harness

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

// FSKind is a kind of file system, small ones included.
type FSKind struct {
	Name  string   // as mount knows it, and the kernel's module
	Mkfs  []string // before the device
	Check []string // before the device; finds nothing to mend, or fails
}

var (
	Ext4  = FSKind{"ext4", []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-f", "-n"}}
	XFS   = FSKind{"xfs", []string{"mkfs.xfs", "-q", "-f", "--unsupported"}, []string{"xfs_repair", "-n"}}
	Btrfs = FSKind{"btrfs", []string{"mkfs.btrfs", "-q", "-f", "--mixed"}, []string{"btrfs", "check", "--readonly"}}
)

// FileTree is a mounted file system with files and the checksum that each must have.
type FileTree struct {
	M       *Machine
	Kind    FSKind
	Options string // of mount
	Root    string
	sums    map[string]uint64 // by path below root
	size    map[string]int64
}

// OthersDir, below the root, is where other users have their files.
const OthersDir = "others"

// NewExt4 is NewFiles on ext4.
func (m *Machine) NewExt4(rng *rand.Rand, d *Disk, bytes int64) *FileTree {
	m.Helper()
	return m.NewFiles(Ext4, rng, d, bytes)
}

// NewFiles makes a file system with files of so many bytes together on a device, and leaves it
// unmounted.
func (m *Machine) NewFiles(kind FSKind, rng *rand.Rand, d *Disk, bytes int64) *FileTree {
	m.Helper()
	m.MustRun(kind.Mkfs[0], append(kind.Mkfs[1:], d.Path)...)
	t := &FileTree{M: m, Kind: kind, sums: map[string]uint64{}, size: map[string]int64{}}
	t.Mount(d.Path)
	for i := 0; t.Bytes() < bytes; i++ {
		size := rng.Int64N(64 * KiB)
		if i%8 == 0 {
			size = rng.Int64N(2 * MiB)
		}
		t.write(rng, fmt.Sprintf("d%d/f%d", i%7, i), size)
	}
	t.Unmount()
	return t
}

// Ext4Dir is an empty directory of a file system on a null_blk device of so many MiB. Direct I/O to
// its files is real, in blocks of 512 bytes.
func (m *Machine) Ext4Dir(mib int64) string {
	m.Helper()
	backing := m.NullBlk("directory", NullOptions{MiB: mib})
	m.MustRun("mkfs.ext4", "-q", "-F", backing.Path)
	t := &FileTree{M: m, Kind: Ext4}
	t.Mount(backing.Path)
	return t.Root
}

// Mount mounts the device; it is unmounted when the test ends, or by unmount.
func (t *FileTree) Mount(path string) {
	t.M.Helper()
	t.M.Try("modprobe", t.Kind.Name) // where it is not built in
	root, err := os.MkdirTemp(t.M.Dir, "mnt")
	if err == nil {
		err = unix.Mount(path, root, t.Kind.Name, 0, t.Options)
	}
	if err != nil {
		t.M.Fatalf("mount %s: %v", path, err)
	}
	t.Root = root
	t.M.Cleanup(func() { t.M.unmountAnyway(root) })
}

// unmountAnyway unmounts after a test that has failed. If nobody answers the device it waits until
// whoever cleans up next has ended that.
func (m *Guest) unmountAnyway(root string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = unix.Unmount(root, 0)
	}()
	select {
	case <-done:
	case <-time.After(CleanLimit):
		m.Logf("%s is not unmounted yet", root)
	}
}

// Unmount unmounts the file system.
func (t *FileTree) Unmount() {
	t.M.Helper()
	if err := unix.Unmount(t.Root, 0); err != nil {
		t.M.Fatalf("unmount %s: %v", t.Root, err)
	}
}

// write writes a file of random bytes in place, without emptying it first, and notes its checksum.
func (t *FileTree) write(rng *rand.Rand, name string, size int64) {
	t.M.Helper()
	path := filepath.Join(t.Root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.M.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.M.Fatal(err)
	}
	b := make([]byte, size)
	for i := 0; i+8 <= len(b); i += 8 {
		LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	if _, err := f.Write(b); err != nil {
		t.M.Fatal(err)
	}
	if err := f.Truncate(size); err != nil { // it may have been longer
		t.M.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.M.Fatal(err)
	}
	t.sums[name], t.size[name] = crc64.Checksum(b, ecma), size
}

// remove removes a file.
func (t *FileTree) remove(name string) {
	t.M.Helper()
	if err := os.Remove(filepath.Join(t.Root, name)); err != nil {
		t.M.Fatal(err)
	}
	delete(t.sums, name)
	delete(t.size, name)
}

// names are the files, sorted.
func (t *FileTree) names() []string {
	names := make([]string, 0, len(t.sums))
	for name := range t.sums {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Bytes is how many all files hold.
func (t *FileTree) Bytes() int64 {
	var n int64
	for _, size := range t.size {
		n += size
	}
	return n
}

// Change overwrites a share of the bytes in place, removes a few files and makes new ones.
func (t *FileTree) Change(rng *rand.Rand, share float64) {
	t.M.Helper()
	names := t.names()
	rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	goal, written := int64(share*float64(t.Bytes())), int64(0)
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
	t.M.Logf("overwrote %d of %d KiB in files", written/KiB, t.Bytes()/KiB)
}

// Sync makes what was written durable.
func (t *FileTree) Sync() {
	t.M.Helper()
	f, err := os.Open(t.Root)
	if err == nil {
		err = unix.Syncfs(int(f.Fd()))
		f.Close()
	}
	if err != nil {
		t.M.Fatal(err)
	}
}

// Check reads every file from the device, not from memory, and compares; there must be no more, but
// in OthersDir. between is called after each file and may be nil.
func (t *FileTree) Check(between func(done, of int)) {
	t.M.Helper()
	t.Sync()
	t.M.DropCaches()
	names := t.names()
	for i, name := range names {
		b, err := os.ReadFile(filepath.Join(t.Root, name))
		if err != nil {
			t.M.Fatal(err)
		}
		if int64(len(b)) != t.size[name] || crc64.Checksum(b, ecma) != t.sums[name] {
			t.M.Fatalf("file %s of %d bytes is not what was written", name, t.size[name])
		}
		if between != nil {
			between(i+1, len(names))
		}
	}
	found := 0
	_ = filepath.WalkDir(t.Root, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			t.M.Fatal(err)
		}
		if e.IsDir() && e.Name() == OthersDir {
			return filepath.SkipDir
		}
		if e.Type().IsRegular() {
			found++
		}
		return nil
	})
	if found != len(names) {
		t.M.Fatalf("%d files, expected %d", found, len(names))
	}
}

// Fsck lets the file system's own tool look for damage.
func (t *FileTree) Fsck(path string) {
	t.M.Helper()
	t.M.MustRun(t.Kind.Check[0], append(t.Kind.Check[1:], path)...)
}
