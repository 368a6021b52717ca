//go:build device

package devicetest

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
)

// stream is a sequence of operations that are made one after the other, and what each has made of
// its cells: the sectors of a device or of a file. Marks in a log say which of them were
// acknowledged as durable:
//
//	NAME:5   all before operation 5
//	NAME+5   operation 5 itself
type stream struct {
	name  string
	ops   int // issued
	cells map[int64][]change
}

type change struct {
	op int
	v  harness.Version
}

func newStream(name string) *stream { return &stream{name: name, cells: map[int64][]change{}} }

// begin is the next operation.
func (s *stream) begin() (op int, v harness.Version) {
	s.ops++
	return s.ops - 1, harness.Original + harness.Version(s.ops)
}

// set notes what operation op is about to make of the cells [first, end).
func (s *stream) set(op int, first, end int64, v harness.Version) {
	for c := first; c < end; c++ {
		s.cells[c] = append(s.cells[c], change{op, v})
	}
}

// bounds are what is known of a stream's operations when the power goes.
type bounds struct {
	flushed int          // all before it are durable
	single  map[int]bool // and these
	issued  int          // those from here on have not begun
}

// at reads the marks in front of entry p of a log, and the first one behind.
func (s *stream) at(entries []harness.LogEntry, p int) bounds {
	b := bounds{single: map[int]bool{}, issued: s.ops}
	for i := range entries {
		var n int
		rest, mine := strings.CutPrefix(entries[i].Mark, s.name)
		if !mine {
			continue
		}
		if _, err := fmt.Sscan(rest[1:], &n); err != nil {
			panic(fmt.Sprintf("the mark %q: %v", entries[i].Mark, err))
		}
		all := rest[0] == ':'
		switch {
		case i >= p && all:
			b.issued = n
			return b
		case i >= p:
			b.issued = n + 1
			return b
		case all:
			b.flushed = n
		default:
			b.single[n] = true
		}
	}
	return b
}

// possible are the versions that a cell may have: the newest durable one first, then what was
// issued later.
func (s *stream) possible(cell int64, b bounds) []harness.Version {
	versions := []harness.Version{harness.Original}
	for _, c := range s.cells[cell] {
		switch {
		case c.op < b.flushed || b.single[c.op]:
			versions = []harness.Version{c.v}
		case c.op < b.issued:
			versions = append(versions, c.v)
		}
	}
	return versions
}

// compare checks the cells that b holds, the first of them given.
func (s *stream) compare(content []byte, first int64, b bounds) error {
	for i := int64(0); i < int64(len(content))/harness.Sector; i++ {
		text, cell := content[i*harness.Sector:(i+1)*harness.Sector], first+i
		possible := s.possible(cell, b)
		if !slices.ContainsFunc(possible, func(v harness.Version) bool { return harness.Holds(text, cell, v) }) {
			return fmt.Errorf("%s, cell %d: expected %v, found %s", s.name, cell, possible, harness.Describe(text))
		}
	}
	return nil
}

// rawStream writes the end of the clone, behind the file system.
type rawStream struct {
	*stream
	v     *harness.Volume
	buf   []byte
	mark  func(string) error
	rng   *rand.Rand
	dirty map[int64]bool // sectors written since the last FLUSH
}

func (r *rawStream) run(ops int) error {
	if err := r.flush(); err != nil {
		return err
	}
	for range ops {
		off := lossFiles + r.rng.Int64N(lossRaw/harness.Sector)*harness.Sector
		length := min(lossDest-off, (1+r.rng.Int64N(1<<r.rng.IntN(9)))*harness.Sector)
		err := r.step(off, length)
		if err == nil && r.rng.IntN(4) == 0 {
			err = r.flush()
		}
		if err != nil {
			return err
		}
	}
	return r.flush()
}

// step makes an operation in a range.
func (r *rawStream) step(off, length int64) error {
	pick := r.rng.IntN(10)
	switch {
	case pick < 5:
		return r.write(off, length, r.v.Write)
	case pick < 7 && r.clean(off, length):
		if err := r.write(off, length, r.v.WriteDurable); err != nil {
			return err
		}
		return r.mark(fmt.Sprintf("%s+%d", r.name, r.ops-1))
	case pick < 9:
		op, _ := r.begin()
		r.note(op, off, off+length, harness.Zeros)
		return r.v.Zero(off, length)
	}
	op, _ := r.begin()
	first, end := (off+lossRegion-1)/lossRegion*lossRegion, (off+length)/lossRegion*lossRegion
	r.note(op, first, max(first, end), harness.Zeros)
	return r.v.Discard(off, length)
}

func (r *rawStream) write(off, length int64, write func([]byte, int64) error) error {
	op, v := r.begin()
	r.note(op, off, off+length, v)
	harness.Fill(r.buf[:length], off, v)
	return write(r.buf[:length], off)
}

func (r *rawStream) note(op int, off, end int64, v harness.Version) {
	r.set(op, off/harness.Sector, end/harness.Sector, v)
	for n := off / harness.Sector; n < end/harness.Sector; n++ {
		r.dirty[n] = true
	}
}

// clean says that none of the range was written since the last FLUSH. The log has a write with FUA
// in front of an earlier one that is not flushed, and the two must not overlap.
func (r *rawStream) clean(off, length int64) bool {
	for n := off / harness.Sector; n < (off+length)/harness.Sector; n++ {
		if r.dirty[n] {
			return false
		}
	}
	return true
}

func (r *rawStream) flush() error {
	if err := r.v.Flush(); err != nil {
		return err
	}
	r.dirty = map[int64]bool{}
	return r.mark(fmt.Sprintf("%s:%d", r.name, r.ops))
}

// check reads the stretch after the power loss.
func (r *rawStream) check(b *lossBench, path string, entries []harness.LogEntry, p int) {
	b.Helper()
	bounds := r.at(entries, p)
	b.SweepRange(path, lossFiles, lossDest, func(off int64, content []byte) error {
		return r.compare(content, off/harness.Sector, bounds)
	})
}

const (
	streamFile  = 64 * harness.KiB
	fileCells   = 256 // numbers that a file's cells have: its sectors, and
	fileThere   = 255 // whether there is such a file: not if it is zeros
	streamFiles = 64  // in the beginning
)

// fileStream overwrites, makes and removes files.
type fileStream struct {
	*stream
	*harness.FileTree
	rng   *rand.Rand
	log   func(string) error
	buf   []byte
	there []int64
	next  int64
}

// newFileStream makes the file system of the source.
func newFileStream(b *lossBench) *fileStream {
	b.Helper()
	size := map[string][]string{
		harness.Ext4.Name: {"-b", "4096", b.source.Path, fmt.Sprintf("%dk", lossFiles/harness.KiB)},
		harness.XFS.Name:  {"-d", fmt.Sprintf("size=%d,agcount=2", lossFiles), b.source.Path},
	}
	b.MustRun(b.kind.Mkfs[0], append(b.kind.Mkfs[1:len(b.kind.Mkfs):len(b.kind.Mkfs)], size[b.kind.Name]...)...)
	f := &fileStream{stream: newStream("files"), FileTree: &harness.FileTree{M: b.Machine, Kind: b.kind}, buf: make([]byte, streamFile),
		rng: rand.New(rand.NewPCG(b.rng.Uint64(), 2)), log: func(text string) error { return b.log.Mark(text) }}
	f.Mount(b.source.Path)
	for ; f.next < streamFiles; f.next++ {
		if err := f.fill(f.next, 0, streamFile, harness.Original); err != nil {
			b.Fatal(err)
		}
		f.there = append(f.there, f.next)
	}
	f.Unmount()
	return f
}

func (f *fileStream) path(file int64) string { return filepath.Join(f.Root, fmt.Sprint("f", file)) }

// fill writes a part of a file, and makes it if it is not there.
func (f *fileStream) fill(file, off, length int64, v harness.Version) error {
	harness.Fill(f.buf[:length], file*fileCells*harness.Sector+off, v)
	to, err := os.OpenFile(f.path(file), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = to.WriteAt(f.buf[:length], off)
	return cmp.Or(err, to.Close())
}

// run makes operations and has them made durable now and then, by syncfs or, if there is but one,
// by fsync.
func (f *fileStream) run(ops int) error {
	pending, trimAt := 0, ops/2
	for i := range ops {
		file, err := f.step()
		if err == nil && i == trimAt {
			err = f.trim()
		}
		pending++
		if err == nil && f.rng.IntN(2) == 0 {
			err = f.flush(file, pending)
			pending = 0
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// step makes an operation; it gives the file if an fsync of that makes it durable, else -1.
func (f *fileStream) step() (file int64, err error) {
	op, v := f.begin()
	i := f.rng.IntN(len(f.there))
	file = f.there[i]
	cell := file * fileCells
	switch f.rng.IntN(6) {
	case 0:
		file, f.next = f.next, f.next+1
		f.there = append(f.there, file)
		cell = file * fileCells
		f.set(op, cell, cell+fileThere+1, v)
		return -1, f.fill(file, 0, streamFile, v)
	case 1:
		f.there = slices.Delete(f.there, i, i+1)
		f.set(op, cell+fileThere, cell+fileThere+1, harness.Zeros)
		return -1, os.Remove(f.path(file))
	}
	const block = 4 * harness.KiB
	off := f.rng.Int64N(streamFile/block) * block
	length := (1 + f.rng.Int64N((streamFile-off)/block)) * block
	f.set(op, cell+off/harness.Sector, cell+(off+length)/harness.Sector, v)
	return file, f.fill(file, off, length, v)
}

// trim has what is free discarded.
func (f *fileStream) trim() error {
	if o := f.M.Try("fstrim", f.Root); o.Code != 0 {
		return fmt.Errorf("fstrim: %s", o.Stderr)
	}
	return nil
}

// flush makes what is pending durable, and marks it. After a syncfs comes an fsync of any file: the
// syncfs of XFS sends no FLUSH to the disk if the log has nothing new, as after an fstrim
// (xfs_fs_sync_fs, fs/xfs/xfs_super.c; no flush seen on 6.12 and 7.3, without any clone), and the
// data that it wrote may be lost.
func (f *fileStream) flush(file int64, pending int) error {
	if file < 0 || pending > 1 {
		if err := flushPath(f.Root, unix.Syncfs); err != nil {
			return err
		}
		file = f.there[0]
	}
	if err := flushPath(f.path(file), unix.Fsync); err != nil {
		return err
	}
	return f.log(fmt.Sprintf("%s:%d", f.name, f.ops))
}

func flushPath(path string, flush func(fd int) error) error {
	of, err := os.Open(path)
	if err != nil {
		return err
	}
	defer of.Close()
	return flush(int(of.Fd()))
}

// check mounts the file system after the power loss, looks at the files and lets the file system's
// tool look.
func (f *fileStream) check(b *lossBench, path string, entries []harness.LogEntry, p int) {
	b.Helper()
	f.Mount(path)
	bounds := f.at(entries, p)
	for file := range f.next {
		if err := f.checkFile(file, bounds); err != nil {
			b.Error(err)
		}
	}
	f.Unmount()
	f.Fsck(path)
}

func (f *fileStream) checkFile(file int64, b bounds) error {
	cell := file * fileCells
	there := f.possible(cell+fileThere, b)
	if file >= streamFiles && there[0] == harness.Original { // made by the test: before that there is none
		there[0] = harness.Zeros
	}
	content, err := os.ReadFile(f.path(file))
	switch {
	case os.IsNotExist(err) && slices.Contains(there, harness.Zeros):
		return nil
	case err != nil:
		return err
	case there[0] == harness.Zeros && len(there) == 1:
		return fmt.Errorf("file %d is there, and was removed", file)
	case there[0] == harness.Zeros:
		return nil // not durable: it may hold anything
	case int64(len(content)) != streamFile:
		return fmt.Errorf("file %d has %d bytes", file, len(content))
	}
	return f.compare(content, cell, b)
}
