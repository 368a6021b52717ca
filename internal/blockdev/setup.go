package blockdev

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// setup is what Open does with a device once that is open: it makes it fit for its role, as it is
// wanted, or refuses it.
type setup struct {
	*Device
	want Options
}

// run locks a file and finds sizes and alignment; on an error the device is closed.
func (s setup) run() (*Device, error) {
	s.dry = s.want.DryRun
	prepare := s.prepareFile
	if s.IsBlock() {
		prepare = s.prepareBlock
	}
	err := prepare()
	if err == nil {
		err = s.refuseUsers()
	}
	if err != nil {
		return nil, s.abandon(err)
	}
	return s.Device, nil
}

// prepareBlock reads the geometry of a block device, which O_EXCL has locked.
func (s setup) prepareBlock() error {
	size, errSize := sys.BlockSize64(s.ask())
	logical, errLogical := sys.LogicalBlock(s.fd())
	physical, errPhysical := sys.PhysicalBlock(s.fd())
	readOnly, errRO := sys.IsReadOnly(s.fd())
	direct, errDirect := sys.IsDirect(s.fd())
	if err := errors.Join(errSize, errLogical, errPhysical, errRO, errDirect); err != nil {
		return s.fail("examine", err, "")
	}
	if size == 0 {
		return s.fail("open", errNoSize, "Insert a medium, or set the device up.")
	}
	if readOnly && s.role != Source && !s.want.ReadOnly {
		return s.fail("open", errReadOnly, "See `blockdev --setrw`.")
	}
	s.size, s.logical, s.physic, s.align, s.direct = size, logical, physical, logical, direct
	if s.role == Source && s.want.Shared {
		s.warn("the source %s is not locked (--source-shared): nobody may mount or write it", s.path)
	}
	if s.role == Source {
		return s.noteBlock()
	}
	return nil
}

// prepareFile, in order: lock; nobody uses the file through a loop device, which no flock keeps
// away; a file system whose promises are its own; direct I/O; space.
func (s setup) prepareFile() error {
	if err := s.lockFile(); err != nil {
		return err
	}
	if err := s.refuseLoop(); err != nil {
		return err
	}
	if err := s.refuseIndirect(); err != nil {
		return err
	}
	if err := s.alignFile(); err != nil {
		return err
	}
	return s.sizeFile()
}

func (s setup) lockFile() error {
	lock := sys.FlockExclusive
	if s.role == Source || s.want.ReadOnly {
		lock = sys.FlockShared
	}
	err := lock(s.fd())
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return busy(s.role, "lock", s.path, errors.New("locked by another process"))
	}
	if err != nil {
		return s.fail("lock", err, "")
	}
	return nil
}

func (s setup) refuseLoop() error {
	loops := host.loopsOver(s.stat)
	if len(loops) == 0 || s.role == Source && s.want.Shared {
		return nil
	}
	cause := fmt.Errorf("in use: %s", joinHolders(loops))
	return failure(s.role, exit.Busy, "open", s.path, cause, "Detach it with `losetup -d`, or name the loop device instead.")
}

func (s setup) refuseIndirect() error {
	if s.role == Source || s.want.ReadOnly {
		return nil
	}
	name, err := sys.IndirectFS(s.fd())
	if err != nil {
		return s.fail("examine", err, "")
	}
	if name == "" {
		return nil
	}
	if !s.want.Force {
		return s.refuse("open", fmt.Errorf("it lies on a %s file system, whose locks and flushes cannot be relied on", name),
			"Use a block device or a file on a local file system; --force overrides.")
	}
	s.warn("the %s %s lies on a %s file system: a crash may lose data", s.role, s.path, name)
	return nil
}

// alignFile finds what direct I/O on the file asks for and switches it on for a destination and
// metadata. A source file stays buffered until Match knows the block size of the clone.
func (s setup) alignFile() error {
	s.logical, s.physic = sector, sector
	var err error
	if s.memory, s.align, err = s.directAlign(); err != nil {
		return s.fail("examine", err, "")
	}
	if s.role == Source {
		return nil
	}
	if s.align > 0 {
		err = sys.SetDirect(s.fd(), true)
	}
	if s.align == 0 || errors.Is(err, syscall.EINVAL) {
		return s.acceptBuffered()
	}
	if err != nil {
		return s.fail("open", err, "")
	}
	s.direct = true
	if s.role == Dest {
		s.logical, s.physic = max(sector, s.align), max(sector, s.align)
	}
	return nil
}

// acceptBuffered: the metadata works without direct I/O too, a destination on force only.
func (s setup) acceptBuffered() error {
	s.align = 0
	if s.role == Metadata {
		return nil
	}
	if !s.want.Force {
		return s.refuse("open", errors.New("its file system has no direct I/O"), "Use another file system; --force overrides.")
	}
	s.warn("the destination %s has no direct I/O: it needs memory to free memory", s.path)
	return nil
}
