package blockdev

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// sizeFile grows a created destination, or one that is empty, and reserves its space, so that a
// write to an unhydrated region cannot fail for want of it later.
func (s setup) sizeFile() error {
	s.grown = s.role == Dest && s.want.Create && s.stat.Size == 0 && !s.created // nobody's data: as one that is made
	fits := s.created || s.grown || s.want.Reserve && s.stat.Size >= s.want.Size
	if s.role == Dest && fits {
		if err := s.reserve(); err != nil {
			return err
		}
	}
	if s.role == Source {
		return s.noteFile()
	}
	st, err := sys.Fstat(s.fd())
	if err != nil {
		return s.fail("examine", err, "")
	}
	s.stat, s.size = st, st.Size
	if s.grown && s.dry {
		s.size = s.want.Size // which it would have
	}
	return nil
}

func (s setup) reserve() error {
	if s.dry {
		return s.tryReserve()
	}
	err := sys.Reserve(s.fd(), s.want.Size)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		err = s.doWithoutReserve()
	}
	if err != nil {
		return s.fail("reserve space for", fmt.Errorf("%d bytes: %w", s.want.Size, err), "Free space on its file system.")
	}
	moves, err := sys.CopiesOnWrite(s.fd())
	if moves {
		s.warn("the file system of the destination %s writes to new places: a full one fails writes, though space is reserved", s.path)
	}
	return err
}

// tryReserve is reserve for a file without a name, which takes no more than a block, or for an
// empty one, which stays so. Space that only root may take does not count.
func (s setup) tryReserve() error {
	var err error
	if s.created {
		err = sys.Reserve(s.fd(), min(s.want.Size, pageBlock))
	}
	var free int64
	if errors.Is(err, syscall.EOPNOTSUPP) {
		err = s.doWithoutReserve()
	} else if err == nil {
		free, err = sys.Free(s.fd())
		if err == nil && free < s.want.Size {
			err = fmt.Errorf("%w: %d bytes are free", syscall.ENOSPC, free)
		}
	}
	if err == nil && s.created {
		err = s.file.Truncate(s.want.Size)
	}
	if err != nil {
		return s.fail("reserve space for", fmt.Errorf("%d bytes: %w", s.want.Size, err), "Free space on its file system.")
	}
	return nil
}

// doWithoutReserve: there must be space at least now.
func (s setup) doWithoutReserve() error {
	s.warn("the file system of the destination %s cannot reserve space: a full one fails writes", s.path)
	free, err := sys.Free(s.fd())
	switch {
	case err != nil:
		return err
	case !s.created && !s.grown:
		return nil
	case free < s.want.Size:
		return fmt.Errorf("%w: %d bytes are free", syscall.ENOSPC, free)
	}
	return s.file.Truncate(s.want.Size)
}
