//go:build device

package devicetest

import "time"

// user is who uses a clone, and knows what it must hold.
type user interface {
	prepare(s *soak, source *disk, region int64) // makes what the clone begins with
	start(path string)
	stop()
	check(path string) // nobody uses it
	answered() int64   // requests or steps so far
	longest() time.Duration
}

// soakRest is a user's after each request: without KVM a guest's CPUs are to have time for daemons to start, too.
const soakRest = 50 * time.Millisecond

// rawUser makes random requests to the device itself.
type rawUser struct {
	s *soak
	*model
	*users
	before int64 // requests to earlier clones
}

func (u *rawUser) prepare(s *soak, source *disk, region int64) {
	s.fillDisk(source, original)
	if u.model != nil {
		u.before = u.answered()
	}
	u.s, u.model = s, newModel(source.size, region)
}

func (u *rawUser) start(path string) {
	u.users = u.s.newUsers()
	parts := load{threads: 3, sequential: 1, block: sector, kinds: everything, rest: soakRest}
	u.waits = append(u.waits, u.model.start(u.s.machine, u.s.rng, path, parts, u.quit))
}

func (u *rawUser) check(path string)      { u.model.check(u.s.machine, path) }
func (u *rawUser) answered() int64        { return u.before + u.model.answered() }
func (u *rawUser) longest() time.Duration { return u.model.longest() }

// fileUser uses a file system on the device.
type fileUser struct {
	kind   fsKind
	tree   *fileTree
	others *files
	*users
	before int64 // requests of earlier clones
	done   int64 // steps of users that have ended
}

func (u *fileUser) prepare(s *soak, source *disk, _ int64) {
	if u.others != nil {
		u.before = u.answered()
	}
	u.tree = s.newFiles(u.kind, s.rng, source, source.size/4)
	u.tree.mount(source.path)
	u.others = u.tree.newOthers(s.rng)
	u.others.rest = soakRest
	u.tree.unmount()
	u.done = 0
}

func (u *fileUser) start(path string) {
	u.tree.options = "discard"
	u.tree.mount(path)
	u.others.moved(u.tree.root)
	u.users = u.others.start()
}

func (u *fileUser) stop() {
	u.users.stop()
	u.done += u.steps.Load()
	u.users = nil
	u.tree.unmount()
}

func (u *fileUser) check(path string) {
	u.tree.mount(path)
	u.others.moved(u.tree.root)
	u.others.check()
	u.tree.check(nil)
	u.tree.unmount()
	u.tree.examine(path)
}

func (u *fileUser) answered() int64 {
	n := u.before + u.done + u.others.direct.answered() + u.others.cached.answered()
	if u.users != nil {
		n += u.steps.Load()
	}
	return n
}

func (u *fileUser) longest() time.Duration { return u.others.longest() }
