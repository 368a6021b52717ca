//go:build device

package devicetest

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Whose marks, whose device: what a dead daemon has left counts only for what it belongs to (I6).

// storage is what destination and metadata hold at a moment.
type storage struct {
	dest, metadata string
	versions       []harness.Version
}

// flushed makes what is written durable and copies it.
func (b *liveMapBench) flushed() storage {
	b.M.Helper()
	v := b.M.Open(b.Path, os.O_RDWR)
	defer v.Close()
	if err := b.model.Write(v, b.M.Buffer(8192), 0, false); err != nil {
		b.M.Fatal(err)
	}
	if err := v.Flush(); err != nil {
		b.M.Fatal(err)
	}
	return storage{b.M.ReadFile(b.dest.Path), b.M.ReadFile(b.metadata.Path), slices.Clone(b.model.Versions)}
}

// restore brings destination and metadata back to that moment.
func (b *liveMapBench) restore(s storage) {
	b.M.Helper()
	b.M.WriteFile(b.dest.Path, s.dest)
	b.M.WriteFile(b.metadata.Path, s.metadata)
	b.model.Versions = s.versions
}

// TestLiveMapOfAnotherBoot: after a power cut a map that was left, by whatever way, is of no use:
// the clone goes on from the last commit.
func TestLiveMapOfAnotherBoot(t *testing.T) {
	runs.On(t, "6.18")
	b := newLiveMapBench(t)
	durable := b.flushed()
	b.scatter()
	b.M.MustRun(harness.Command, "prune")
	b.restore(durable)
	b.M.OtherBoot()
	b.Add()
	b.model.Check(b.M, b.Path)
	b.Del()
}

// TestLiveMapOfAnotherSession: destination and metadata were brought back, to before a clean stop,
// beside a map that was not. Its marks are of data that are gone.
func TestLiveMapOfAnotherSession(t *testing.T) {
	runs.On(t, "6.18")
	b := newLiveMapBench(t)
	earlier := b.flushed()
	b.Del()
	b.Add()
	b.scatter()
	b.M.MustRun(harness.Command, "prune")
	b.restore(earlier)
	b.M.ExpectFailure(b.M.Try(harness.Command, append([]string{"add", b.Name}, b.Args...)...), exit.Metadata, "session")
	b.Args = append(b.Args, "--force")
	b.Add()
	b.model.Check(b.M, b.Path)
	b.Del()
}

// TestRecoverComplete: of what is hydrated throughout nothing is in the live map any more, only in
// the metadata. The first request that the next daemon serves, which has waited for it, must find
// it so.
func TestRecoverComplete(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	b := newLiveMapBench(t)
	b.HydrateFast()
	b.WaitHydrated()
	v, buf := b.M.Open(b.Path, os.O_RDWR), b.M.Buffer(16*1024)
	if err := b.model.Write(v, buf, harness.MiB, true); err != nil {
		t.Fatal(err)
	}
	b.End(syscall.SIGKILL)
	result := make(chan error, 1)
	go func() { result <- b.model.Read(v, buf, harness.MiB) }()
	b.Recover()
	if err := <-result; err != nil {
		t.Error(err)
	}
	b.model.Check(b.M, b.Path)
	v.Close()
	b.Del()
}

// TestRecoverForeignDevice: the device of a dead daemon is gone, and another clone's has its
// number. It is not taken over, and not removed with the dead clone either.
func TestRecoverForeignDevice(t *testing.T) {
	runs.On(t, "6.18")
	b := newLiveMapBench(t)
	b.End(syscall.SIGKILL)
	if err := harness.DeleteDevices(); err != nil {
		t.Fatal(err)
	}
	dest := b.M.NullBlk("dst2", harness.NullOptions{MiB: 16})
	args := slices.Clone(b.Args)
	args[slices.Index(args, "--dest")+1] = dest.Path
	args[slices.Index(args, "--metadata")+1] = b.M.NullBlk("meta2", harness.NullOptions{MiB: 1}).Path
	other := &harness.Clone{M: b.M, Name: "other", Args: args}
	t.Cleanup(other.Abandon)
	other.Add()
	if other.Path != b.Path {
		t.Fatalf("the devices are %s and %s", b.Path, other.Path)
	}
	other.End(syscall.SIGKILL)
	if o := b.M.Try(harness.Command, "recover", b.Name); o.Code == 0 || !strings.Contains(o.Stderr, "its block device is gone") {
		t.Errorf("exit status %d: %s", o.Code, o.Stderr)
	}
	other.Recover()
	b.M.MustRun(harness.Command, "prune")
	b.model.Check(b.M, other.Path) // neither was written
	b.Path = ""
	other.Del()
}
