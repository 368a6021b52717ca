package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// LoopBacking is what lies behind the loop device at path, as the loop driver itself knows it: the
// name in sysfs may lead elsewhere by now, or be one of another mount namespace. ENXIO: nothing.
func LoopBacking(path string) (Stat, error) {
	f, err := Open(path, os.O_RDONLY, 0)
	if err != nil {
		return Stat{}, err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return Stat{}, wrap("ioctl LOOP_GET_STATUS64", err)
	}
	st := Stat{Mode: unix.S_IFREG, Dev: info.Device, Inode: info.Inode}
	if info.Rdevice != 0 {
		st.Mode, st.Rdev = unix.S_IFBLK, info.Rdevice
	}
	return st, nil
}
