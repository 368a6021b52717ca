package sys

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MountTmpfs sees to it that dir, a directory that exists, is a tmpfs of its own
// that is never swapped out (noswap, since 6.4), and mounts one if it is not.
// Callers that race must hold a lock. EINVAL says that the kernel is older.
func MountTmpfs(dir string) error {
	there, err := TmpfsThere(dir)
	if err != nil || there {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return wrap("mount tmpfs", unix.Mount("tmpfs", dir, "tmpfs", flags, "mode=0700,size=50%,noswap"))
}

// TmpfsThere says whether a tmpfs is mounted on dir; another file system there
// is an error.
func TmpfsThere(dir string) (bool, error) {
	here, errHere := StatPath(dir)
	above, errAbove := StatPath(filepath.Dir(dir))
	if err := errors.Join(errHere, errAbove); err != nil {
		return false, err
	}
	if here.Dev == above.Dev {
		return false, nil
	}
	var fs unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(dir, &fs) }); err != nil {
		return false, wrap("statfs", err)
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return false, fmt.Errorf("%s: another file system than tmpfs is mounted there (type %#x)", dir, fs.Type)
	}
	return true, nil
}
