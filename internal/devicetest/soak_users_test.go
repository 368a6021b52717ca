//go:build device

package devicetest

import (
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
)

// user is who uses a clone, and knows what it must hold.
type user interface {
	prepare(s *soak, source *harness.Disk, region int64) // makes what the clone begins with
	start(path string)
	Stop()
	check(path string) // nobody uses it
	answered() int64   // requests or steps so far
	longest() time.Duration
}

// soakRest is a user's after each request: without KVM a guest's CPUs are to have time for daemons
// to start, too.
const soakRest = 50 * time.Millisecond

// rawUser makes random requests to the device itself.
type rawUser struct {
	s *soak
	*harness.Model
	*harness.Users
	before int64 // requests to earlier clones
}

func (u *rawUser) prepare(s *soak, source *harness.Disk, region int64) {
	s.FillDisk(source, harness.Original)
	if u.Model != nil {
		u.before = u.answered()
	}
	u.s, u.Model = s, harness.NewModel(source.Size, region)
}

func (u *rawUser) start(path string) {
	u.Users = u.s.NewUsers()
	parts := harness.Load{Threads: 3, Sequential: 1, Block: harness.Sector, Kinds: harness.Everything, Rest: soakRest}
	u.Waits = append(u.Waits, u.Model.Start(u.s.Machine, u.s.rng, path, parts, u.Quit))
}

func (u *rawUser) check(path string)      { u.Model.Check(u.s.Machine, path) }
func (u *rawUser) answered() int64        { return u.before + u.Model.Answered() }
func (u *rawUser) longest() time.Duration { return u.Model.Longest() }

// fileUser uses a file system on the device.
type fileUser struct {
	kind   harness.FSKind
	tree   *harness.FileTree
	others *harness.Files
	*harness.Users
	before int64 // requests of earlier clones
	done   int64 // steps of users that have ended
}

func (u *fileUser) prepare(s *soak, source *harness.Disk, _ int64) {
	if u.others != nil {
		u.before = u.answered()
	}
	u.tree = s.NewFiles(u.kind, s.rng, source, source.Size/4)
	u.tree.Mount(source.Path)
	u.others = u.tree.NewOthers(s.rng)
	u.others.Rest = soakRest
	u.tree.Unmount()
	u.done = 0
}

func (u *fileUser) start(path string) {
	u.tree.Options = "discard"
	u.tree.Mount(path)
	u.others.Moved(u.tree.Root)
	u.Users = u.others.Start()
}

func (u *fileUser) Stop() {
	u.Users.Stop()
	u.done += u.Steps.Load()
	u.Users = nil
	u.tree.Unmount()
}

func (u *fileUser) check(path string) {
	u.tree.Mount(path)
	u.others.Moved(u.tree.Root)
	u.others.Check()
	u.tree.Check(nil)
	u.tree.Unmount()
	u.tree.Fsck(path)
}

func (u *fileUser) answered() int64 {
	n := u.before + u.done + u.others.Direct.Answered() + u.others.Cached.Answered()
	if u.Users != nil {
		n += u.Steps.Load()
	}
	return n
}

func (u *fileUser) longest() time.Duration { return u.others.Longest() }
