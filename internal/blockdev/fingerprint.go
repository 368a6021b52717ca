package blockdev

import "github.com/ublk-clone/ublk-clone/internal/fingerprint"

// Fingerprint samples the source, and says when it was written if that is known; see
// fingerprint.Take for known. It is an error also if the source has changed since it was opened.
func (d *Device) Fingerprint(known *[fingerprint.NrPieces]uint32) (fingerprint.Print, error) {
	f, err := fingerprint.Take(d.ReadAt, d.size-d.size%int64(d.Align()), known)
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
