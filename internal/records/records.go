package records

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/text"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// recordDirEnv names another directory than the default, for tests.
const recordDirEnv = "UBLK_CLONE_STATE_DIR"

const defaultRecordDir = "/var/lib/ublk-clone"

// Dir is the directory that holds a record for each destination that is partly hydrated: a file
// named after the destination's identity. A destination has no room for a stamp of ours, and its
// metadata can vanish: without the record, the same add would then take it for an empty one and
// show the source's old bytes where the user has written.
//
//	there      since a daemon first used the destination with this metadata
//	rewritten  at every start and stop; never while the device is served, on which this directory may lie
//	removed    when everything is durably hydrated: then the destination stands alone. Nothing else removes
//	           it, not even del, after which the same add is to go on; add --force replaces it
type Dir string

func DefaultDir() Dir {
	return Dir(cmp.Or(os.Getenv(recordDirEnv), defaultRecordDir))
}

// Record says by which metadata a destination is partly hydrated. Paths are for display only.
type Record struct {
	Dest     string    `json:"dest"`
	DestID   string    `json:"dest_id"`
	Birth    int64     `json:"dest_birth"` // of a file, nanoseconds since 1970; 0 = unknown
	Source   string    `json:"source"`
	Metadata string    `json:"metadata"`
	UUID     string    `json:"uuid"`
	Session  uint64    `json:"session"`
	Size     int64     `json:"size"`     // bytes
	Hydrated int64     `json:"hydrated"` // bytes, at Written
	Written  time.Time `json:"written"`
}

// path is that of the record of a destination.
func (d Dir) path(id blockdev.Identity) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", id.ID, id.Size))
	return filepath.Join(string(d), hex.EncodeToString(sum[:16])+".json")
}

// Load reads a record; nil if there is none.
func (d Dir) Load(id blockdev.Identity) (*Record, error) {
	b, err := os.ReadFile(d.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	r := &Record{}
	if err == nil {
		err = json.Unmarshal(b, r)
	}
	if err != nil {
		return nil, fmt.Errorf("read record %s: %w", d.path(id), err)
	}
	return r, nil
}

// store writes a record, durably, whole or not at all.
func (d Dir) store(id blockdev.Identity, r *Record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = file.MakeDir(string(d), 0o700)
	}
	if err == nil {
		err = file.Replace(d.path(id), append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write record %s: %w", d.path(id), err)
	}
	return nil
}

// remove forgets a destination.
func (d Dir) remove(id blockdev.Identity) error {
	if err := file.Discard(d.path(id)); err != nil {
		return fmt.Errorf("remove record %s: %w", d.path(id), err)
	}
	return nil
}

// Kept is the record of a clone's destination: as it was found, and how it is kept up to date.
type Kept struct {
	Dir Dir
	Id  blockdev.Identity
	was *Record // before this start
	err error   // why was could not be read
	// written: this start has written the record.
	written bool
}

// Read looks for what is known of the destination. A destination without an identity has no
// record, and what is recorded of a file that had this one's number before it is nothing. The
// record is filed under the size that the destination had when found, the metadata, were made.
func Read(dir Dir, dest *blockdev.Device, found *metadata.Superblock) (Kept, error) {
	id, err := dest.Identity()
	if found != nil && found.Dest.ID == id.ID {
		id.Size = found.Dest.Size
	}
	u := Kept{Dir: dir, Id: id}
	if err != nil || id.ID == "" {
		return u, err
	}
	u.was, u.err = dir.Load(id)
	if u.was != nil && (dest.Created() || u.was.Birth != dest.Birth()) {
		u.was = nil
	}
	return u, nil
}

// Vanished refuses, with exit code 14, to make new metadata for a destination that others say is
// partly hydrated.
func (u *Kept) Vanished(path string, force bool) error {
	if force || u.was == nil && u.err == nil {
		return nil
	}
	return &exit.Error{Code: exit.Refused, Doing: "create metadata on", Object: path, Cause: u.conflict(),
		Next: "Find that metadata and name it with --metadata. If that clone was given up, remove " + u.Dir.path(u.Id) +
			", or use --force: what was written to it is then lost."}
}

// Outdated refuses, with exit code 14, metadata that is not that by which the destination was last
// hydrated, or are an old copy of them.
func (u *Kept) Outdated(path string, sb *metadata.Superblock, force bool) error {
	if force || u.was == nil || u.was.UUID == sb.UUID.String() && u.was.Session <= sb.Session {
		return nil
	}
	cause := u.conflict()
	if u.was.UUID == sb.UUID.String() {
		cause = fmt.Errorf("it is an old copy, of session %d: %w in session %d", sb.Session, cause, u.was.Session)
	}
	return &exit.Error{Code: exit.Refused, Doing: "use the metadata", Object: path, Cause: cause,
		Next: "Name the newest metadata with --metadata. --force goes back to this: what was written to the clone since is then lost."}
}

// conflict says what is recorded.
func (u *Kept) conflict() error {
	if u.was == nil {
		return u.err
	}
	r := u.was
	return fmt.Errorf("the destination %s is partly hydrated by metadata %s, last at %s, with %s of %s on %s",
		r.Dest, r.UUID, r.Metadata, text.Size(r.Hydrated), text.Size(r.Size), r.Written.Local().Format(time.DateTime))
}

// Write records the use, unless the destination cannot be told from others.
func (u *Kept) Write(r *Record) error {
	if u.Id.ID == "" {
		return nil
	}
	r.DestID = u.Id.ID
	err := u.Dir.store(u.Id, r)
	u.written = u.written || err == nil
	return err
}

// Forget removes the record.
func (u *Kept) Forget() error {
	if u.Id.ID == "" {
		return nil
	}
	return u.Dir.remove(u.Id)
}

// Restore is for a start that failed: what is recorded is what was before it.
func (u *Kept) Restore() error {
	switch {
	case !u.written:
		return nil
	case u.was == nil:
		return u.Forget()
	}
	return u.Dir.store(u.Id, u.was)
}
