package blockdev

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Options of Open.
type Options struct {
	// Shared opens a source without the exclusive lock: several clones use it.
	Shared bool
	// Force accepts what could cost data: a destination or metadata file on a
	// network, FUSE or overlay file system, or without direct I/O.
	Force bool
	// Create makes a destination or metadata file that does not exist.
	Create bool
	// Size in bytes of a destination that is created, and the space reserved
	// for one that is created or, with Reserve, exists.
	Size int64
	// Reserve gives an existing destination file its space.
	Reserve bool
	// ReadOnly opens metadata to look at it.
	ReadOnly bool
	// DryRun refuses what would be refused and changes nothing: block devices are opened for
	// reading only, so that nobody is told of a change, and a file that would be made is one
	// without a name in its directory, gone when it is closed.
	DryRun bool
	// Tolerate is whose use of the device is only told of.
	Tolerate Tolerance
	// Others are open for the same clone: a device that overlaps one of them is
	// refused, before opening it would only find it busy.
	Others []*Device
	// Way is how a destination that is a block device is reached; nil: by itself.
	Way Way
}

// Open opens and locks path for its role. Exit codes: 5 if it is held, with the holders; 6 without
// permission; 14 for what Force accepts and for an overlap; else the role's.
func Open(role Role, path string, o Options) (*Device, error) {
	st, err := sys.StatPath(path)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case missing && o.Create && role != Source && !inDev(path):
		return create(role, path, o)
	case err != nil:
		return nil, failure(role, openCode(role, err), "open", path, err, openNext(role, err))
	case !st.IsBlock() && !st.IsRegular():
		return nil, failure(role, role.code(), "open", path, errors.New("neither a block device nor a regular file"), "Check the path.")
	}
	if err := host.apart(node{path: path, role: role, stat: st, size: host.pathSize(st)}, o.Others); err != nil {
		return nil, err
	}
	d, err := openFound(role, path, st, o)
	if err != nil {
		return nil, err
	}
	if d.stat.Dev != st.Dev || d.stat.Inode != st.Inode {
		return nil, d.abandon(d.fail("open", errors.New("it changed while it was opened"), "Try again."))
	}
	if d, err = (setup{d, o}).run(); err != nil || d.way == nil || d.self != nil || o.DryRun {
		return d, err
	}
	if err := d.goThrough(d.way); err != nil {
		return nil, d.abandon(err)
	}
	return d, nil
}

// openFound opens what is there, a block device by its way if there is one already.
func openFound(role Role, path string, st sys.Stat, o Options) (d *Device, err error) {
	if !st.IsBlock() {
		return open(role, path, fileFlags(role, o))
	}
	var way string
	if o.Way != nil {
		way, err = o.Way.There(st.Rdev, host.pathSize(st))
	}
	switch {
	case err != nil:
		return nil, err
	case way != "":
		d, err = openVia(role, path, way, o)
	default:
		d, err = open(role, path, blockFlags(role, o))
	}
	if err == nil {
		d.way = o.Way
	}
	return d, err
}

// errReadOnly: a block device that nobody may write.
var errReadOnly = errors.New("the device is read-only")

// Unwritable says of an error of Open that what was to be written can only be read.
func Unwritable(err error) bool { return errors.Is(err, errReadOnly) || errors.Is(err, syscall.EROFS) }

// errNoSize: a device whose medium is out, or that its driver has lost.
var errNoSize = errors.New("it has no size: no medium, or not set up")

// awayErrors are what is behind an error of a device that is not there, or does not answer.
var awayErrors = []error{
	errNoSize, fs.ErrNotExist, io.ErrUnexpectedEOF, syscall.ENXIO, syscall.ENODEV, syscall.ENOMEDIUM, syscall.ESTALE, syscall.ESHUTDOWN,
	syscall.EIO, syscall.EREMOTEIO, syscall.ENODATA, syscall.EBADE, syscall.EILSEQ, syscall.ENOLINK, syscall.ETIMEDOUT,
	syscall.ENOTCONN, syscall.ECONNRESET, syscall.EHOSTUNREACH, syscall.ENETUNREACH,
	syscall.EUCLEAN, // a file on a file system that is damaged
	ErrChanged,
}

// Away says of an error of Open, or of reading what is open, that the device cannot be reached or
// read: it may be the right one, and come back. It is not so of one in use, without permission, or
// of the wrong kind.
func Away(err error) bool {
	return slices.ContainsFunc(awayErrors, func(e error) bool { return errors.Is(err, e) })
}

// inDev says that path can only be meant as a device: a file made there would lie in memory.
func inDev(path string) bool {
	abs, err := filepath.Abs(path)
	return err != nil || strings.HasPrefix(abs, "/dev/") && !strings.HasPrefix(abs, "/dev/shm/")
}

func fileFlags(role Role, o Options) int {
	if role == Source || o.ReadOnly {
		return os.O_RDONLY
	}
	return os.O_RDWR
}

// blockFlags makes the open itself the lock: O_EXCL claims a block device.
func blockFlags(role Role, o Options) int {
	switch {
	case role == Source && o.Shared:
		return os.O_RDONLY
	case role == Source:
		return os.O_RDONLY | os.O_EXCL
	case o.ReadOnly, o.DryRun:
		return os.O_RDONLY | os.O_EXCL | syscall.O_DIRECT
	}
	return os.O_RDWR | os.O_EXCL | syscall.O_DIRECT
}

// making is how far a file is that Open makes, or that was there and empty.
type making struct {
	created bool
	unnamed bool   // created, and not under its name yet
	begun   string // the name that it has until then, "" for none
	grown   bool   // an empty file that was there got its size
}

// Created says whether Open made the file.
func (m *making) Created() bool { return m.created }

// create makes a file that has its name only when it is complete, however its maker dies:
//
//  1. open a file without a name in the directory
//  2. set it up: lock it, look at the file system, reserve the space of a destination
//  3. Publish: give it its name. Metadata first get their content
//
// A file system without such files has one of another name in its place, which the next attempt
// takes.
func create(role Role, path string, o Options) (*Device, error) {
	d, err := open(role, path, os.O_RDWR|sys.OpenNameless)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EISDIR) {
		if o.DryRun {
			return nil, noNameless(role, path, o)
		}
		d, err = openBegun(role, path)
	}
	if err != nil {
		return nil, err
	}
	d.created, d.unnamed = true, true
	if d, err = (setup{d, o}).run(); err != nil || o.DryRun || role == Metadata {
		return d, err
	}
	if err := d.Publish(); err != nil {
		return nil, d.abandon(err)
	}
	return d, nil
}

// BegunSuffix is behind the name of a file that is being made, and locked, where it has to have
// one.
const BegunSuffix = ".ublk-clone-new"

// openBegun opens such a file, empty. Who has begun one that is there is dead, or has its lock.
func openBegun(role Role, path string) (*Device, error) {
	d, err := open(role, path+BegunSuffix, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	d.path, d.begun = path, path+BegunSuffix
	if err := (setup{d, Options{}}).lockFile(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if st, err := sys.StatPath(d.begun); err != nil || st.Inode != d.stat.Inode {
		return nil, errors.Join(d.fail("make", errors.New("somebody else is making it"), "Try again."), d.Close())
	}
	if err := d.file.Truncate(0); err != nil {
		return nil, errors.Join(d.fail("make", err, ""), d.Close())
	}
	return d, nil
}

// Publish gives a file that Open has made its name, durably. For others it does nothing. Whoever
// was faster keeps the name, and this file is none.
func (d *Device) Publish() error {
	if !d.unnamed || d.dry {
		return nil
	}
	var err error
	if d.begun != "" {
		err = sys.RenameNew(d.begun, d.path)
	} else {
		err = sys.Name(d.fd(), d.path)
	}
	if err != nil {
		return d.fail("make", err, "If somebody else has made it meanwhile, try again.")
	}
	d.unnamed, d.begun = false, ""
	if err := errors.Join(d.file.Sync(), file.FlushDir(filepath.Dir(d.path))); err != nil {
		return d.fail("make", err, "")
	}
	return nil
}

// noNameless is of a dry run in a directory whose file system has no files without names. It is
// refused if it is of a kind that no file would be made on.
func noNameless(role Role, path string, o Options) error {
	dir, err := open(role, filepath.Dir(path), os.O_RDONLY)
	if err != nil {
		return err
	}
	dir.path = path
	defer dir.Close()
	if err := (setup{dir, o}).refuseIndirect(); err != nil {
		return err
	}
	return dir.fail("try to make", errors.New("its file system cannot tell without making it"), "Make an empty file there yourself, or leave --dry-run out.")
}

// open makes the one description.
func open(role Role, path string, flags int) (*Device, error) {
	at := path
	if flags&sys.OpenNameless == sys.OpenNameless {
		at = filepath.Dir(path)
	}
	f, err := sys.Open(at, flags, 0o600)
	if err != nil {
		if isBusy(err) {
			return nil, busy(role, "open", path, err)
		}
		return nil, failure(role, openCode(role, err), "open", path, err, openNext(role, err))
	}
	d := &Device{watched: watched{opened: opened{node: node{path: path, role: role}, file: f}}}
	if d.stat, err = sys.Fstat(d.fd()); err != nil {
		return nil, d.abandon(d.fail("examine", err, ""))
	}
	return d, nil
}

func openCode(role Role, err error) int {
	if errors.Is(err, fs.ErrPermission) {
		return exit.Denied
	}
	return role.code()
}

func openNext(role Role, err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "Run it as root."
	case errors.Is(err, fs.ErrNotExist) && role == Metadata:
		return "Check the path and that its directory is there; `ublk-clone add` without --open makes a missing file."
	}
	return "Check the path and that the device is attached."
}

// abandon closes a device that could not be set up, removes what was created
// for it, and hands the error on.
func (d *Device) abandon(err error) error {
	return errors.Join(err, d.Remove(), d.Close())
}

func (d *Device) warn(format string, args ...any) {
	d.warned = append(d.warned, fmt.Sprintf(format, args...))
}

// isBusy says that somebody has a block device open exclusively.
func isBusy(err error) bool { return errors.Is(err, syscall.EBUSY) }

// busy is an error that lists who holds path.
func busy(role Role, verb, path string, cause error) error {
	next := "Stop whoever uses it."
	holders, err := Holders(path)
	if err == nil && len(holders) > 0 {
		cause = fmt.Errorf("%w: %s", cause, joinHolders(holders))
	} else {
		next = "No holder was found: it may be in another namespace, or a daemon's last request is still in flight."
	}
	return failure(role, exit.Busy, verb, path, cause, next)
}

func joinHolders(holders []Holder) string {
	names := make([]string, len(holders))
	for i, h := range holders {
		names[i] = h.String()
	}
	return strings.Join(names, "; ")
}
