package devices

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/steps"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// files are the three parts of a clone as files in a directory, and a directory for records.
type files struct {
	t                      *testing.T
	dir                    string
	source, dest, metadata string
	records                records.Dir
}

const testMiB = 1 << 20

// localDir is a directory on a file system that is taken without force: not the overlay of a
// container.
func localDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if name, err := sys.IndirectFS(int(f.Fd())); err == nil && name == "" {
		return dir
	}
	if dir, err = os.MkdirTemp("/dev/shm", "ublk-clone"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func newFiles(t *testing.T) *files {
	dir := localDir(t)
	f := &files{t: t, dir: dir, source: filepath.Join(dir, "source"), dest: filepath.Join(dir, "dest"),
		metadata: filepath.Join(dir, "meta"), records: records.Dir(filepath.Join(dir, "records"))}
	f.make(f.source, testMiB)
	f.make(f.dest, testMiB)
	return f
}

func (f *files) make(path string, size int64) string {
	f.t.Helper()
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// open does what a daemon's start does before it asks for the driver, and undoes it with after in
// between. Before that it is tried: a dry run says the same.
func (f *files) open(change func(*definition.Start), after func(*Devices) error) error {
	f.t.Helper()
	st := definition.Start{Definition: definition.Definition{Name: "c", Source: f.source, Dest: f.dest, Metadata: f.metadata, Queues: 1, QueueDepth: 1}}
	change(&st)
	tried := f.dryRun(st, nothing)
	refused, err := f.run(st, after)
	if fmt.Sprint(tried) != fmt.Sprint(refused) || exit.Code(tried) != exit.Code(refused) {
		f.t.Errorf("a dry run says %v, exit code %d, and the start %v, %d", tried, exit.Code(tried), refused, exit.Code(refused))
	}
	return errors.Join(refused, err)
}

// run tells the errors of the steps from others.
func (f *files) run(st definition.Start, after func(*Devices) error) (refused, err error) {
	d := New(NewShared(st, zerolog.Nop()), f.records)
	var done steps.List
	if err := done.Run(context.Background(), d.Steps()); err != nil {
		return err, nil
	}
	return nil, errors.Join(after(d), done.Stop())
}

// use opens the clone, as of a session, and records it.
func (f *files) use(session uint64, change func(*definition.Start)) error {
	f.t.Helper()
	return f.open(change, func(d *Devices) error {
		err := d.Meta.Store.Update(func(sb *metadata.Superblock) error {
			sb.Session = session
			return nil
		})
		sb := d.Meta.Store.Superblock()
		return errors.Join(err, d.Dest.Record.Write(&records.Record{
			Dest: f.dest, Birth: d.Dest.Birth(), Metadata: f.metadata, UUID: sb.UUID.String(), Session: sb.Session, Size: testMiB, Hydrated: testMiB / 2,
		}))
	})
}

func (f *files) expect(what string, err error, code int, says ...string) {
	f.t.Helper()
	if exit.Code(err) != code {
		f.t.Errorf("%s: %v, exit code %d, want %d", what, err, exit.Code(err), code)
		return
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			f.t.Errorf("%s: %q does not say %q", what, err, text)
		}
	}
	if code != 0 && exit.Next(err) == "" {
		f.t.Errorf("%s: %q has no next step", what, err)
	}
}

func plain(*definition.Start)        {}
func withForce(s *definition.Start)  { s.Force = true }
func withOpen(s *definition.Start)   { s.Open = true }
func withCreate(s *definition.Start) { s.Create = true }

func nothing(*Devices) error { return nil }

// Metadata that was in use and is gone is not made again without a word.
func TestVanishedMetadata(t *testing.T) {
	f := newFiles(t)
	if err := f.use(1, plain); err != nil {
		t.Fatal(err)
	}
	f.expect("as it was", f.open(plain, nothing), exit.OK)
	old := f.metadata + ".old"
	if err := os.Rename(f.metadata, old); err != nil {
		t.Fatal(err)
	}
	says := []string{f.dest, f.metadata, "512 KiB of 1 MiB"}
	f.expect("missing metadata", f.open(plain, nothing), exit.Refused, says...)
	f.expect("missing metadata, --create", f.open(withCreate, nothing), exit.Refused, says...)
	if _, err := os.Stat(f.metadata); err == nil {
		t.Error("refused, and there is metadata")
	}
	f.make(f.metadata, testMiB)
	f.expect("zeroed metadata", f.open(plain, nothing), exit.Refused, says...)

	f.expect("--force", f.use(1, withForce), exit.OK)
	f.expect("the new ones", f.open(plain, nothing), exit.OK)
	if err := os.Rename(old, f.metadata); err != nil {
		t.Fatal(err)
	}
	f.expect("the old ones", f.open(plain, nothing), exit.Refused, says...)
	f.expect("the old ones, --force", f.open(withForce, nothing), exit.OK)
}

// A copy of metadata that has been used since would show old bytes.
func TestOldCopyOfMetadata(t *testing.T) {
	f := newFiles(t)
	if err := f.use(1, plain); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.metadata)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.use(2, plain); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.metadata, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f.expect("a copy", f.open(withOpen, nothing), exit.Refused, "an old copy, of session 1", "session 2")
	f.expect("a copy, --force", f.open(withForce, nothing), exit.OK)
}

// Another destination, also one of the same name or number, is nobody's business.
func TestRecordIsOfOneDestination(t *testing.T) {
	f := newFiles(t)
	if err := f.use(1, plain); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(f.metadata), os.Rename(f.dest, f.dest+".old")); err != nil {
		t.Fatal(err)
	}
	f.make(f.dest, testMiB)
	f.expect("another file of that name", f.open(plain, nothing), exit.OK)

	u := records.Kept{Dir: f.records, Id: blockdev.Identity{ID: "file:1", Size: 1}}
	if err := u.Write(&records.Record{Birth: 1}); err != nil {
		t.Fatal(err)
	}
	if r, err := f.records.Load(u.Id); err != nil || r == nil || r.DestID != "file:1" {
		t.Errorf("record: %+v, %v", r, err)
	}
	if err := errors.Join(u.Forget(), u.Forget()); err != nil {
		t.Error(err)
	}
	if r, err := f.records.Load(u.Id); err != nil || r != nil {
		t.Errorf("forgotten: %+v, %v", r, err)
	}
	nameless := records.Kept{Dir: f.records}
	if err := errors.Join(nameless.Write(&records.Record{}), nameless.Forget(), nameless.Restore()); err != nil {
		t.Error(err)
	}
}

// TestForgottenRecord: nothing stays of a record that is forgotten, also not of one that a killed
// daemon has begun to write.
func TestForgottenRecord(t *testing.T) {
	u := records.Kept{Dir: records.Dir(t.TempDir()), Id: blockdev.Identity{ID: "file:1", Size: 1}}
	if err := u.Write(&records.Record{}); err != nil {
		t.Fatal(err)
	}
	there, err := filepath.Glob(string(u.Dir) + "/*")
	if err != nil || len(there) != 1 {
		t.Fatalf("records: %q, %v", there, err)
	}
	if err := os.WriteFile(there[0]+".new", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := u.Forget(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(string(u.Dir)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A start that fails leaves the record as it was.
func TestFailedStartLeavesTheRecord(t *testing.T) {
	f := newFiles(t)
	failed := errors.New("failed")
	fails := func(d *Devices) error {
		err := d.Dest.Record.Write(&records.Record{UUID: "of the failed start"})
		return errors.Join(err, d.revertStore(), failed)
	}
	if err := f.open(plain, fails); !errors.Is(err, failed) {
		t.Fatal(err)
	}
	if all, err := os.ReadDir(string(f.records)); err != nil || len(all) != 0 {
		t.Errorf("records: %v, %v", all, err)
	}
	if err := f.use(1, withForce); err != nil {
		t.Fatal(err)
	}
	if err := f.open(plain, fails); !errors.Is(err, failed) {
		t.Fatal(err)
	}
	f.expect("as it was", f.open(plain, nothing), exit.OK)
}

// A record that cannot be read may say that the destination is in use.
func TestUnreadableRecord(t *testing.T) {
	f := newFiles(t)
	if err := f.use(1, plain); err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob(string(f.records) + "/*.json")
	if err != nil || len(all) != 1 {
		t.Fatalf("records: %q, %v", all, err)
	}
	if err := os.WriteFile(all[0], []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.expect("metadata that is there", f.open(plain, nothing), exit.OK)
	if err := os.Remove(f.metadata); err != nil {
		t.Fatal(err)
	}
	f.expect("missing metadata", f.open(plain, nothing), exit.Refused, all[0])
	f.expect("missing metadata, --force", f.open(withForce, nothing), exit.OK)
}
