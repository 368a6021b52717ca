package blockdev

import (
	"errors"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Peek opens path only to look at it while somebody else holds it: for reading, without a lock, and
// past the page cache where blocks of that many bytes allow it, so that it is the device that
// answers.
func Peek(role Role, path string, block int) (*Device, error) {
	st, err := sys.StatPath(path)
	if err != nil {
		return nil, failure(role, openCode(role, err), "find", path, err, openNext(role, err))
	}
	if !st.IsBlock() && !st.IsRegular() {
		return nil, failure(role, role.code(), "find", path, errors.New("neither a block device nor a regular file"), "Check the path.")
	}
	o := Options{ReadOnly: true, Shared: true}
	flags := fileFlags(role, o)
	if st.IsBlock() {
		flags = blockFlags(Source, o)
	}
	d, err := open(role, path, flags)
	if err != nil {
		return nil, err
	}
	if d.IsBlock() {
		err = (setup{d, Options{ReadOnly: true}}).prepareBlock()
		d.align, d.direct = d.logical, false
	} else if _, d.align, err = d.directAlign(); err == nil {
		d.logical, d.size = sector, d.stat.Size
		if role == Source {
			err = d.noteFile()
		}
	}
	if err == nil {
		err = d.chooseDirect(block)
	}
	if err != nil {
		return nil, d.abandon(err)
	}
	return d, nil
}

// Answers reads a little at both ends, and returns when the device has answered.
func (d *Device) Answers() error {
	m, err := sys.Map(pageBlock, false)
	if err != nil {
		return err
	}
	defer m.Close()
	if !d.direct {
		d.DropCache() // which would answer in its place
	}
	step := int64(max(d.Align(), sector))
	for _, off := range []int64{0, max(0, d.size/step*step-step)} {
		if err := sys.ReadFullAt(d.fd(), m.Bytes()[:min(step, d.size)], off); err != nil {
			return d.fail("read", err, "Check the device.")
		}
	}
	return nil
}
