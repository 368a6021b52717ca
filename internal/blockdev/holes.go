package blockdev

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// NextData is the first offset at or after off that may hold something other
// than zeros, or Size if there is none: a sparse file's holes are left out, a
// block device answers off. It asks the file system and reads nothing.
//
// The end of a file is no hole (I14): a file that has become shorter than Size,
// and a source that has changed in any way, is an error.
func (w *watched) NextData(off int64) (int64, error) {
	if w.IsBlock() || off >= w.size {
		return min(off, w.size), nil
	}
	data, err := sys.Data(w.fd(), off)
	switch {
	case errors.Is(err, syscall.ENXIO):
		return w.size, w.stillWhole()
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EOPNOTSUPP):
		return off, nil
	case err != nil:
		return 0, fmt.Errorf("%s: %w", w.path, err)
	}
	return min(data, w.size), w.stillWhole()
}

// NextHole is the first offset at or after off that is in a hole, Size if there
// is none or the file system does not tell.
func (w *watched) NextHole(off int64) (int64, error) {
	if w.IsBlock() || off >= w.size {
		return w.size, nil
	}
	hole, err := sys.Hole(w.fd(), off)
	switch {
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EOPNOTSUPP):
		return w.size, nil
	case errors.Is(err, syscall.ENXIO):
		return w.size, w.stillWhole()
	case err != nil:
		return 0, fmt.Errorf("%s: %w", w.path, err)
	}
	return min(hole, w.size), w.stillWhole()
}

// stillWhole is asked after a look for holes, and before anybody believes it: what the look has
// taken for a hole may be the end of a file that is being replaced.
func (w *watched) stillWhole() error {
	if w.role == Source {
		return w.CheckRead()
	}
	st, err := sys.FstatNow(w.fd())
	if err == nil && st.Size < w.size {
		err = fmt.Errorf("it ends at byte %d, not at %d: %w", st.Size, w.size, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", w.path, err)
	}
	return nil
}
