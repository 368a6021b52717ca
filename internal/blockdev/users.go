package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Who else uses a device. The exclusive open keeps away who holds the very device, its partitions
// or its disk. It says nothing of others that reach the same bytes:
//
//	above    a loop device over it, over a part of it, or over a partition of it
//	below    what a loop device leads to is mounted, or another clone's destination
//	beside   two device-mapper tables that lead to one stretch of a disk; another path to the same disk
//	outside  a network target that exports it; a program that writes to it without a lock
//
// So every block device of the machine is looked at for bytes that it shares with this one, by the
// spans of overlap.go. Siblings share none, and are no users: two logical volumes on one disk, two
// partitions, two files.

// Tolerance says whose use of a device does not keep a clone from it. Who continues a clone finds
// users of its block device waiting: that somebody maps the destination must not cost them theirs.
type Tolerance uint8

// The tolerances.
const (
	TolerateNobody   Tolerance = iota
	TolerateIdle               // who maps the device, and lets nobody use that
	TolerateEveryone           // by force, or because the former daemon had the same neighbours a moment ago
)

// usersLimit bounds the search, which looks at paths that may lie on what does not answer.
const usersLimit = 15 * time.Second

// Programs that look at a new device, as to assemble arrays, have it open for writing for a moment.
const (
	writerPause = 100 * time.Millisecond
	writerLooks = 20
)

// refuseUsers refuses, with exit code 5, an open and locked device that somebody else uses.
func (s setup) refuseUsers() error {
	if s.want.ReadOnly || s.role == Source && s.want.Shared {
		return nil
	}
	users, err := s.usersWithin(usersLimit)
	switch {
	case err != nil && s.want.Tolerate != TolerateNobody:
		s.warn("cannot find out who else uses the %s %s: %v", s.role, s.path, err)
	case err != nil:
		return failure(s.role, exit.Timeout, "look for users of", s.path, err, "A network file system or a device does not answer; --force overrides.")
	}
	var refused, told []Holder
	for _, h := range users {
		table := h.Kind == "device" // that nobody has open: as a partition that nobody uses
		if s.want.Tolerate == TolerateEveryone || h.idle && (table || s.want.Tolerate == TolerateIdle) {
			told = append(told, h)
		} else {
			refused = append(refused, h)
		}
	}
	if len(refused) > 0 {
		return failure(s.role, exit.Busy, "open", s.path, fmt.Errorf("in use: %s", joinHolders(refused)),
			"Stop whoever uses it, or detach it (`losetup -d`, `dmsetup remove`); --force overrides.")
	}
	if len(told) > 0 {
		s.warn("others use the %s %s too, and may change it: %s", s.role, s.path, joinHolders(told))
	}
	return nil
}

func (s setup) usersWithin(limit time.Duration) ([]Holder, error) {
	found := make(chan []Holder, 1)
	guard.Go("search for users", func() { found <- s.users() })
	select {
	case all := <-found:
		return all, nil
	case <-time.After(limit):
		return nil, fmt.Errorf("no answer within %s", limit)
	}
}

func (s setup) users() []Holder {
	ways := host.search(s.stat, s.size)
	if s.way != nil {
		ways.own = s.way.Own()
	}
	all := append(ways.rivals(), ways.exporters()...)
	if !s.IsBlock() {
		return append(all, host.swapHolders(host.object(s.stat))...)
	}
	if s.role != Source && s.want.Tolerate == TolerateNobody {
		all = append(all, s.lastingWriters()...)
	}
	return all
}

// lastingWriters are those that do not go by themselves.
func (s setup) lastingWriters() (found []Holder) {
	for range writerLooks {
		if found = host.writers(host.object(s.stat)); len(found) == 0 {
			return nil
		}
		time.Sleep(writerPause)
	}
	return found
}

// base is how a device lies on others: the spans, and the nodes below with whether it is known
// where.
type base struct {
	spans []span
	below map[string]bool
	dir   string // in sysfs, of a block device
	rdev  uint64
}

func (b base) meets(other []span) bool { return shared(b.spans, other) != "" }

// covers says that an exclusive open of the device has found out whether that with this directory
// is held: it is a partition of it, or its disk.
func (b base) covers(dir string) bool {
	return b.dir != "" && (isPartition(dir) && diskOf(dir) == b.dir || isPartition(b.dir) && diskOf(b.dir) == dir)
}

// search looks for those who reach the bytes of a device by another way than the device itself.
type search struct {
	tree
	of  base
	own []uint64 // devices that are no rivals: Way.Own
}

func (t tree) search(st sys.Stat, size int64) search {
	b := base{spans: t.spans(st, size), below: map[string]bool{}}
	if st.IsBlock() {
		b.rdev, b.dir = st.Rdev, t.dir(st.Rdev)
	}
	for _, s := range b.spans {
		b.below[s.node] = b.below[s.node] || s.exact
	}
	return search{tree: t, of: b}
}

// maps says that a device is made of others.
func maps(dir string) bool { return text(dir, "loop", "backing_file") != "" || len(slaves(dir)) > 0 }

// rivals are those who use bytes of the device through another one.
func (s search) rivals() (all []Holder) {
	links, _ := filepath.Glob(filepath.Join(s.sys, "dev", "block", "*"))
	for _, link := range links {
		rdev, ok := parseDev(filepath.Base(link))
		dir := s.dir(rdev)
		if !ok || dir == "" || rdev == s.of.rdev || slices.Contains(s.own, rdev) {
			continue
		}
		other := sys.BlockStat(rdev)
		if bytes := number(dir, "size") * 512; bytes == 0 || !s.of.meets(s.spans(other, bytes)) {
			continue
		}
		if s.hasOpen(os.Getpid(), object{devs: []uint64{rdev}}) {
			continue // ours, as a source that its clone is about to leave for another way to it: Options.Others says what must be apart
		}
		exact, isBelow := s.of.below["block "+devName(rdev)]
		switch {
		case isBelow && !exact, s.of.covers(dir): // its file system's; the open has asked
		case isBelow || !maps(dir):
			all = append(all, s.usersOf(rdev, dir)...)
		default:
			all = append(all, s.mapping(rdev, dir))
		}
	}
	return all
}

// mapping is a device over bytes of the one in question, as a holder.
func (s search) mapping(rdev uint64, dir string) Holder {
	h := Holder{Kind: "device", Where: nodePath(dir)}
	if text(dir, "loop", "backing_file") != "" {
		h.Kind = "loop"
	}
	if name := text(dir, "dm", "name"); name != "" {
		h.Where += " (" + name + ")"
	}
	users := s.usersOf(rdev, dir)
	h.idle = len(users) == 0
	for _, u := range users {
		if u.Kind != "claim" {
			h.Where += ", " + u.String()
		}
	}
	return h
}

// usersOf are those who use that very device.
func (s search) usersOf(rdev uint64, dir string) (all []Holder) {
	u := object{devs: []uint64{rdev}}
	all = append(s.mountHolders(u), s.swapHolders(u)...)
	held, _ := filepath.Glob(filepath.Join(dir, "holders", "*"))
	if len(all) > 0 || len(held) > 0 || len(partitions(dir)) > 0 {
		return all // what holds it, or has a partition of it, is looked at by itself
	}
	if path := nodePath(dir); s.claimed != nil && s.claimed(path) {
		all = append(append(all, Holder{Kind: "claim", Where: path}), s.processHolders(u)...)
	}
	return all
}

// exporters are network targets of the kernel over the device or file, which they open unlocked.
func (s search) exporters() (all []Holder) {
	for _, e := range s.exports() {
		back, err := s.stat(e.path)
		if err == nil && s.of.meets(s.spans(back, s.pathSize(back))) {
			all = append(all, e.holder())
		}
	}
	return all
}

// export is what a network target of the kernel has open.
type export struct{ path, who string }

func (e export) holder() Holder { return Holder{Kind: "export", Where: e.who} }

func (t tree) exports() (all []export) {
	found, _ := filepath.Glob(filepath.Join(t.sys, "kernel/config/nvmet/subsystems/*/namespaces/*"))
	for _, dir := range found {
		if text(dir, "enable") == "1" {
			subsystem := filepath.Base(filepath.Dir(filepath.Dir(dir)))
			all = append(all, export{text(dir, "device_path"), "the NVMe target " + subsystem + ", namespace " + filepath.Base(dir)})
		}
	}
	found, _ = filepath.Glob(filepath.Join(t.sys, "kernel/config/target/core/*/*"))
	for _, dir := range found {
		if text(dir, "enable") == "1" {
			all = append(all, export{lioBacking(dir), "the SCSI target " + filepath.Base(filepath.Dir(dir)) + "/" + filepath.Base(dir)})
		}
	}
	return all
}

// lioBacking is the path behind a storage object of LIO; only its description says it of a file
// (fd_show_configfs_dev_params, drivers/target/target_core_file.c, 6.12).
func lioBacking(dir string) string {
	words := strings.Fields(text(dir, "info"))
	for i := range words {
		if words[i] == "File:" && i+1 < len(words) {
			return words[i+1]
		}
	}
	return strings.TrimSpace(text(dir, "udev_path"))
}

// exportHolders are the network targets of the kernel that have that very device open.
func (t tree) exportHolders(u object) (all []Holder) {
	for _, e := range t.exports() {
		if st, err := t.stat(e.path); err == nil && len(u.devs) > 0 && u.is(st) {
			all = append(all, e.holder())
		}
	}
	return all
}

// Place is where a device or file lies, for two that nobody has open.
type Place []span

// PlaceOf looks a path up; os.ErrNotExist if there is nothing.
func PlaceOf(path string) (Place, error) {
	st, err := host.stat(path)
	if err != nil {
		return nil, err
	}
	return host.spans(st, host.pathSize(st)), nil
}

// Shares names the device or file on which two places have bytes in common, "" if they have none.
func (p Place) Shares(other Place) string { return shared(p, other) }

// On says whether the place is on a block device, directly or through others.
func (p Place) On(rdev uint64) bool {
	for _, s := range p {
		if s.node == "block "+devName(rdev) {
			return true
		}
	}
	return false
}

// IsBlock says whether it is a block device, not a file.
func (p Place) IsBlock() bool { return len(p) > 0 && strings.HasPrefix(p[0].node, "block ") }
