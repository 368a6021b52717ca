package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// This file notices that a source has changed since it was opened (I14). Nothing that was read
// after a change may be kept or shown, so whoever has read looks before the bytes are used, and the
// file system is relied on for this order:
//
//	write                   the times change first, then the bytes
//	                        (ext4_write_checks, xfs_file_write_checks, shmem_file_write_iter; 6.12 and 7.3)
//	truncate, O_TRUNC       the size changes before the bytes are gone (ext4_setattr, shmem_setattr); XFS clears the rest of the
//	                        last block first, and no read gets in between: both hold the inode's lock (xfs_setattr_size)
//	utimens, as by cp -p    the change time is never put back
//
// What cannot be noticed: stores through a mapping of a page that is dirty already, and of a file
// on tmpfs; a hole punched into a file on tmpfs for as long as that takes (shmem_fallocate updates
// the times last); content of a block device that somebody else writes, which the exclusive open
// prevents.
//
// The times have the granularity of the kernel's tick, so a change in the very tick of the one
// before it is not seen. So a file whose times are that young is not taken yet: noteFile waits
// until they are older.

// ErrChanged: the source is not what it was when it was opened, or begins to change.
var ErrChanged = errors.New("it has changed")

// Granularity of a file's times, and how often it is waited for to pass.
const (
	fineTimes     = 20 * time.Millisecond // two ticks at 100 Hz
	coarseTimes   = 2 * time.Second       // of file systems that keep seconds, or every other one
	agedStatTries = 5
)

// watched is what is open, and what it was like when it was opened. It says where there is data and
// that nobody has changed it.
type watched struct {
	opened
	was *present // of a source file

	// Of a source that is a block device, see noteBlock.
	diskSeq uint64
	behind  []behindFile
}

// noteFile notes what the open source file is like.
func (w *watched) noteFile() error {
	st, err := agedStat(w.fd())
	if err != nil {
		return w.fail("open", err, "Wait until it is complete.")
	}
	w.stat, w.size, w.was = st, st.Size, newPresent(st)
	return nil
}

// present is what a file was like when that was found right. It changes when the file is renamed.
type present struct{ atomic.Pointer[sys.Stat] }

func newPresent(st sys.Stat) *present {
	p := new(present)
	p.Store(&st)
	return p
}

// agedStat describes an open file once a change from now on has other times.
func agedStat(fd int) (sys.Stat, error) {
	return agedStatBy(func() (sys.Stat, error) { return sys.Fstat(fd) })
}

func agedStatBy(describe func() (sys.Stat, error)) (sys.Stat, error) {
	for range agedStatTries {
		st, err := describe()
		wait := tooYoung(st, time.Now())
		if err != nil || wait == 0 {
			return st, err
		}
		time.Sleep(wait)
	}
	return sys.Stat{}, fmt.Errorf("%w again and again while it was looked at: somebody is writing to it", ErrChanged)
}

// tooYoung is how long it takes until a change of the file has other times than st, or 0.
func tooYoung(st sys.Stat, now time.Time) time.Duration {
	grain := fineTimes
	if st.Mtime%int64(time.Second) == 0 && st.Ctime%int64(time.Second) == 0 {
		grain = coarseTimes
	}
	age := now.Sub(time.Unix(0, max(st.Mtime, st.Ctime)))
	if age < 0 || age > grain { // of the future: somebody else's clock
		return 0
	}
	return grain - age + time.Millisecond
}

// CheckRead is asked when reads of the source have ended and before their bytes are used: it says
// in which way a file, or the file behind a loop device, has changed since it was opened. It costs
// one system call, and none on another block device.
func (w *watched) CheckRead() error {
	if !w.IsBlock() {
		return w.was.check(w.fd())
	}
	for i := range w.behind {
		if err := w.behind[i].check(); err != nil {
			return err
		}
	}
	return nil
}

// Changed is CheckRead, and of a block device also what is asked from time to time: it has another
// size, or another medium.
func (w *watched) Changed() error {
	if err := w.CheckRead(); err != nil || !w.IsBlock() {
		return err
	}
	size, err := sys.BlockSize64(w.fd())
	switch {
	case err != nil:
		return err
	case size != w.size:
		return fmt.Errorf("%w: it has %d bytes, and had %d", ErrChanged, size, w.size)
	}
	if seq := sys.DiskSeq(w.fd()); seq != w.diskSeq {
		return fmt.Errorf("%w: its medium is number %d, and was number %d", ErrChanged, seq, w.diskSeq)
	}
	return nil
}

// check compares an open file with what it was. A RenamedError is told once.
func (p *present) check(fd int) error {
	was := p.Load()
	now, err := sys.FstatNow(fd)
	switch {
	case err != nil:
		return err
	case now.Size != was.Size:
		return fmt.Errorf("%w: it has %d bytes, and had %d", ErrChanged, now.Size, was.Size)
	case now.Mtime != was.Mtime:
		return fmt.Errorf("%w: it was written at %s", ErrChanged, clock(now.Mtime))
	case now.Ctime == was.Ctime:
		return nil
	case now.Links == was.Links:
		return fmt.Errorf("%w: its times, owner, mode or name were changed at %s", ErrChanged, clock(now.Ctime))
	}
	renamed := now // on the heap only here
	p.CompareAndSwap(was, &renamed)
	return &RenamedError{Links: now.Links}
}

// RenamedError: only the number of the open file's names has changed, as when another one took its
// name. Its bytes are those of before, and are there as long as it is open. From then on the file
// is compared with what it is now.
type RenamedError struct{ Links uint32 }

func (e *RenamedError) Error() string {
	if e.Links == 0 {
		return "its file was deleted or replaced by another one; what is open still has the bytes of before"
	}
	return fmt.Sprintf("a name of its file was added or removed, which has %d now", e.Links)
}

func clock(ns int64) string { return time.Unix(0, ns).UTC().Format("2006-01-02 15:04:05.000 UTC") }

// Again is another description of the same open device, taken as it is now: for who has been told
// that what has changed is right. The lock is that of d, and is there until both are closed.
func (d *Device) Again() (*Device, error) {
	file, err := sys.Dup(d.fd(), d.path)
	if err != nil {
		return nil, d.fail("open", err, "")
	}
	again := *d
	again.file, again.behind, again.closed = file, nil, false
	if d.IsBlock() {
		if err = again.noteBlock(); again.diskSeq != d.diskSeq {
			again.id = nil
		}
	} else {
		err = again.noteFile()
	}
	for i := range again.behind {
		if err == nil && i < len(d.behind) {
			err = again.behind[i].notShorter(&d.behind[i])
		}
	}
	if err == nil && again.size != d.size {
		err = again.fail("open", fmt.Errorf("%w: it has %d bytes, and had %d", ErrChanged, again.size, d.size), "Bring back the one that was cloned.")
	}
	if err != nil {
		return nil, errors.Join(err, again.Close())
	}
	return &again, nil
}

// noteBlock notes what an open block device is like that is a source.
func (w *watched) noteBlock() (err error) {
	if w.size, err = sys.BlockSize64(w.fd()); err != nil {
		return w.fail("examine", err, "")
	}
	w.diskSeq = sys.DiskSeq(w.fd())
	if w.behind = host.filesBehind(w.stat.Rdev, levels); len(w.behind) == 0 {
		return nil
	}
	_ = sys.Fdatasync(w.fd()) // what somebody else has left in the page cache would change the times of the file when it is written
	for i := range w.behind {
		b := &w.behind[i]
		st, err := agedStat(int(b.file.Fd()))
		if err != nil {
			return w.fail("open", err, "Wait until it is complete.")
		}
		if !b.part && st.Size < w.size {
			return w.fail("open", fmt.Errorf("%w: the file behind it has %d bytes, and it has %d", ErrChanged, st.Size, w.size), "Bring back the whole file.")
		}
		b.was = newPresent(st)
	}
	return nil
}

// behindFile is a file that a block device lies on, through a loop device.
type behindFile struct {
	file *os.File
	was  *present
	// part: others may use the rest of the file, and only that it does not become shorter is to be
	// looked at.
	part bool
}

func (b *behindFile) check() error {
	if !b.part {
		return b.was.check(int(b.file.Fd()))
	}
	now, err := sys.FstatNow(int(b.file.Fd()))
	if was := b.was.Load().Size; err == nil && now.Size < was {
		err = fmt.Errorf("%w: the file behind it has %d bytes, and had %d", ErrChanged, now.Size, was)
	}
	return err
}

// notShorter fails if the file has become shorter than it was.
func (b *behindFile) notShorter(before *behindFile) error {
	if now, was := b.was.Load().Size, before.was.Load().Size; now < was {
		return fmt.Errorf("%w: the file behind it has %d bytes, and had %d", ErrChanged, now, was)
	}
	return nil
}

// filesBehind opens the files behind the loop devices that the block device lies on. One that
// cannot be reached from here, as in another mount namespace, is left out.
func (t tree) filesBehind(rdev uint64, levels int) (found []behindFile) {
	dir := t.dir(rdev)
	if dir == "" || levels == 0 {
		return nil
	}
	below := slaves(dir)
	if isPartition(dir) {
		if disk, ok := parseDev(text(filepath.Dir(dir), "dev")); ok {
			below = append(below, disk)
		}
	}
	for _, dev := range below {
		for _, b := range t.filesBehind(dev, levels-1) {
			b.part = true
			found = append(found, b)
		}
	}
	if file := fileBehind(dir); file != nil {
		part := number(dir, "loop", "offset") != 0 || number(dir, "loop", "sizelimit") != 0
		found = append(found, behindFile{file: file, part: part})
	}
	return found
}

// fileBehind opens the file behind the loop device at dir; nil: its name leads to none, or another.
func fileBehind(dir string) *os.File {
	path := text(dir, "loop", "backing_file")
	if path == "" {
		return nil
	}
	file, err := sys.Open(path, os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	st, err := sys.Fstat(int(file.Fd()))
	if err != nil || !st.IsRegular() || !sys.LoopIsOver(filepath.Join("/dev", filepath.Base(dir)), st) {
		file.Close()
		return nil
	}
	return file
}
