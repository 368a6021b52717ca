//go:build device

package devicetest

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Whose marks, whose device: what a dead daemon has left counts only for what it belongs to (I6).

// storage is what destination and metadata hold at a moment.
type storage struct {
	dest, metadata string
	versions       []version
}

// flushed makes what is written durable and copies it.
func (b *liveMapBench) flushed() storage {
	b.m.Helper()
	v := b.m.open(b.path, os.O_RDWR)
	defer v.close()
	if err := b.model.write(v, b.m.buffer(8192), 0, false); err != nil {
		b.m.Fatal(err)
	}
	if err := v.flush(); err != nil {
		b.m.Fatal(err)
	}
	return storage{b.m.readFile(b.dest.path), b.m.readFile(b.metadata.path), slices.Clone(b.model.versions)}
}

// restore brings destination and metadata back to that moment.
func (b *liveMapBench) restore(s storage) {
	b.m.Helper()
	b.m.writeFile(b.dest.path, s.dest)
	b.m.writeFile(b.metadata.path, s.metadata)
	b.model.versions = s.versions
}

// TestLiveMapOfAnotherBoot: after a power cut a map that was left, by whatever way, is of no use: the clone goes on
// from the last commit.
func TestLiveMapOfAnotherBoot(t *testing.T) {
	runs.On(t, "6.18")
	b := newLiveMapBench(t)
	durable := b.flushed()
	b.scatter()
	b.m.run(command, "prune")
	b.restore(durable)
	b.m.otherBoot()
	b.add()
	b.model.check(b.m, b.path)
	b.del()
}

// TestLiveMapOfAnotherSession: destination and metadata were brought back, to before a clean stop, beside a map
// that was not. Its marks are of data that are gone.
func TestLiveMapOfAnotherSession(t *testing.T) {
	runs.On(t, "6.18")
	b := newLiveMapBench(t)
	earlier := b.flushed()
	b.del()
	b.add()
	b.scatter()
	b.m.run(command, "prune")
	b.restore(earlier)
	b.m.expectFailure(b.m.try(command, append([]string{"add", b.name}, b.args...)...), exit.Metadata, "session")
	b.args = append(b.args, "--force")
	b.add()
	b.model.check(b.m, b.path)
	b.del()
}

// TestRecoverComplete: of what is hydrated throughout nothing is in the live map any more, only in the metadata. The
// first request that the next daemon serves, which has waited for it, must find it so.
func TestRecoverComplete(t *testing.T) {
	runs.On(t, "6.12")
	b := newLiveMapBench(t)
	b.hydrateFast()
	b.waitHydrated()
	v, buf := b.m.open(b.path, os.O_RDWR), b.m.buffer(16*1024)
	if err := b.model.write(v, buf, mib, true); err != nil {
		t.Fatal(err)
	}
	b.end(syscall.SIGKILL)
	result := make(chan error, 1)
	go func() { result <- b.model.read(v, buf, mib) }()
	b.recover()
	if err := <-result; err != nil {
		t.Error(err)
	}
	b.model.check(b.m, b.path)
	v.close()
	b.del()
}

// TestRecoverForeignDevice: the device of a dead daemon is gone, and another clone's has its number. It is not taken
// over, and not removed with the dead clone either.
func TestRecoverForeignDevice(t *testing.T) {
	runs.On(t, "6.18")
	b := newLiveMapBench(t)
	b.end(syscall.SIGKILL)
	if err := deleteDevices(); err != nil {
		t.Fatal(err)
	}
	dest := b.m.nullBlk("dst2", nullOptions{mib: 16})
	args := slices.Clone(b.args)
	args[slices.Index(args, "--dest")+1] = dest.path
	args[slices.Index(args, "--metadata")+1] = b.m.nullBlk("meta2", nullOptions{mib: 1}).path
	other := &clone{m: b.m, name: "other", args: args}
	t.Cleanup(other.abandon)
	other.add()
	if other.path != b.path {
		t.Fatalf("the devices are %s and %s", b.path, other.path)
	}
	other.end(syscall.SIGKILL)
	if o := b.m.try(command, "recover", b.name); o.code == 0 || !strings.Contains(o.stderr, "its block device is gone") {
		t.Errorf("exit status %d: %s", o.code, o.stderr)
	}
	other.recover()
	b.m.run(command, "prune")
	b.model.check(b.m, other.path) // neither was written
	b.path = ""
	other.del()
}
