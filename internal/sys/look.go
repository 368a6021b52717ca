package sys

import (
	"errors"

	"golang.org/x/sys/unix"
)

// What a look at the machine asks. Nothing here changes anything.

// Owner is the user that path belongs to.
func Owner(path string) (uid int, err error) {
	var st unix.Stat_t
	err = retry(func() error { return unix.Stat(path, &st) })
	return int(st.Uid), wrap("stat", err)
}

// FreeAt is the space, in bytes, that is left for anybody on the file system that path lies on.
func FreeAt(path string) (int64, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(path, &st) }); err != nil {
		return 0, wrap("statfs", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// MayWrite is an error if this process may not write to path: permissions, or a file system that is
// read-only.
func MayWrite(path string) error { return wrap("access", unix.Access(path, unix.W_OK)) }

// TryNoSwap says whether the kernel can keep a tmpfs from being swapped out: EINVAL, if it is older
// than 6.4. The option is given to a file system that is not made, so that nothing is mounted. It
// needs CAP_SYS_ADMIN.
func TryNoSwap() error {
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return wrap("open tmpfs", err)
	}
	err = wrap("set noswap", unix.FsconfigSetFlag(fd, "noswap"))
	return errors.Join(err, unix.Close(fd))
}
