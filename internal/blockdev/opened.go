package blockdev

import (
	"fmt"
	"os"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// opened is a node with its one open description, which holds its lock. It says whether the node is
// still there and as long as it was, and reads it.
type opened struct {
	node
	file   *os.File
	self   *os.File // of one that is reached by a Way: itself, not locked and never read; else nil
	closed bool
}

// File is the one description of the device. It stays valid until Close; a
// ring that uses its descriptor keeps it reachable.
func (o *opened) File() *os.File { return o.file }

// fd is the descriptor for calls of package sys; the caller holds o, and o the file.
func (o *opened) fd() int { return int(o.file.Fd()) }

// IsOpen says whether the description is there: it is not after Close, until Retake.
func (o *opened) IsOpen() bool { return !o.closed }

// Current says of a block device that it is still there and that its path leads to it, so that
// there is no other to open. A file can always be opened once more.
func (o *opened) Current() bool {
	st, err := sys.StatPath(o.path)
	return err == nil && o.IsBlock() && st.IsBlock() && st.Rdev == o.stat.Rdev && o.Present()
}

// Present says that a block device has the size that it was opened with. One that was removed has
// none (del_gendisk, block/genhd.c, 6.12): then reads find its end, and writes no space.
func (o *opened) Present() bool {
	if !o.IsBlock() {
		return true
	}
	size, err := sys.BlockSize64(o.ask())
	return err == nil && size == o.size
}

// Gone says that a block device was removed under us: it has no size any more.
func (o *opened) Gone() bool {
	if !o.IsBlock() {
		return false
	}
	size, err := sys.BlockSize64(o.ask())
	return err != nil || size == 0
}

// Shorter says that the device has become shorter than it was at open: what was written behind its
// end is lost. nil: it has not, or is not there to be asked.
func (o *opened) Shorter() error {
	size, err := o.sizeNow()
	if err != nil || size >= o.size || o.IsBlock() && size == 0 { // 0: it was removed, which its errors tell
		return nil
	}
	return o.fail("find the end of", fmt.Errorf("it has %d bytes, and had %d when it was opened", size, o.size), "")
}

func (o *opened) sizeNow() (int64, error) {
	if o.IsBlock() {
		return sys.BlockSize64(o.ask())
	}
	st, err := sys.Fstat(o.fd())
	return st.Size, err
}

// ReadOnly says that nobody may write it, by what its device or file system says.
func (o *opened) ReadOnly() (bool, error) {
	if o.IsBlock() {
		return sys.IsReadOnly(o.fd())
	}
	return sys.OnReadOnlyFS(o.fd())
}

// directAlign is the alignment of direct I/O in bytes, that of memory alone and of all, 0 where
// there is none. Where the file system does not say, the one that all of them take.
func (o *opened) directAlign() (memory, all int, err error) {
	memory, offset, known, err := sys.DirectAlign(o.fd())
	if err != nil {
		return 0, 0, err
	}
	if !known {
		return pageBlock, pageBlock, nil
	}
	return memory, max(memory, offset), nil
}

// ReadAt fills p from off, through the one description. What direct I/O asks for (Align) is the
// caller's care. It blocks.
func (o *opened) ReadAt(p []byte, off int64) error { return sys.ReadFullAt(o.fd(), p, off) }

// DropCache gives up what the page cache holds of the device. Direct writes look for it there as
// long as there is anything of the whole device (filemap_invalidate_pages, mm/filemap.c, 6.18), and
// whoever made or probed it has left something. It saves time and is not needed: an error is none.
func (o *opened) DropCache() { _, _ = sys.DropCache(o.fd()), sys.DropCache(o.ask()) }
