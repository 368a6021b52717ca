package blockdev

import (
	"github.com/ublk-clone/ublk-clone/internal/fingerprint"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Fingerprint samples the source, and says when it was written if that is known; see
// fingerprint.Take for known. It is an error also if the source has changed since it was opened.
func (d *Device) Fingerprint(known *[fingerprint.NrPieces]uint32) (fingerprint.Print, error) {
	m, err := sys.Map(fingerprint.Bytes, false)
	if err != nil {
		return fingerprint.Print{}, d.fail("read", err, "")
	}
	defer m.Close()
	f, err := fingerprint.Take(d.ReadAt, d.size-d.size%int64(d.Align()), m.Bytes(), known)
	if err == nil {
		err = d.Changed()
	}
	if err != nil {
		return f, d.fail("read", err, "Check the source device.")
	}
	if !d.IsBlock() {
		f.Mtime, f.Ctime = d.stat.Mtime, d.stat.Ctime
	}
	return f, nil
}
