package blockdev

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Holder is somebody who uses a device or a file.
type Holder struct {
	Kind    string `json:"kind"`              // mount, swap, device, loop, process, claim, export
	Where   string `json:"where,omitempty"`   // mount point, swap area, device on top
	PID     int    `json:"pid,omitempty"`     // of a process
	Command string `json:"command,omitempty"` // of a process

	idle bool // it maps the device, and nobody uses that
}

// String names the holder for a message.
func (h Holder) String() string {
	switch h.Kind {
	case "mount":
		return "mounted on " + h.Where
	case "swap":
		return "used as swap"
	case "process":
		return fmt.Sprintf("open in process %d (%s)", h.PID, h.Command)
	case "claim":
		return "somebody holds " + h.Where
	case "export":
		return "exported by " + h.Where
	}
	return "under " + h.Where
}

// Holders lists who uses the device or file at path: mounts in every mount namespace, devices on
// top, loop devices, swap and processes that have it open, other than this one. Partitions count as
// their disk.
func Holders(path string) ([]Holder, error) {
	st, err := host.stat(path)
	if err != nil {
		return nil, err
	}
	return host.holders(st), nil
}

func (t tree) holders(st sys.Stat) []Holder {
	u := t.object(st)
	var all []Holder
	all = append(all, t.mountHolders(u)...)
	all = append(all, t.stackHolders(st)...)
	all = append(all, t.loopsOver(st)...)
	all = append(all, t.swapHolders(u)...)
	all = append(all, t.exportHolders(u)...)
	return append(all, t.processHolders(u)...)
}

// object is what a user may have open: the numbers of a device and its partitions, or an inode.
type object struct {
	devs       []uint64
	dev, inode uint64
}

func (t tree) object(st sys.Stat) object {
	u := objectOf(st)
	if dir := t.dir(st.Rdev); st.IsBlock() && dir != "" {
		u.devs = append(u.devs, partitions(dir)...)
	}
	return u
}

// objectOf leaves partitions out.
func objectOf(st sys.Stat) object {
	if st.IsBlock() {
		return object{devs: []uint64{st.Rdev}}
	}
	return object{dev: st.Dev, inode: st.Inode}
}

func (u object) is(st sys.Stat) bool {
	if st.IsBlock() {
		return slices.Contains(u.devs, st.Rdev)
	}
	return u.inode != 0 && st.Dev == u.dev && st.Inode == u.inode
}

// stackHolders are device-mapper and md devices on top of the device or of its partitions.
func (t tree) stackHolders(st sys.Stat) []Holder {
	if !st.IsBlock() {
		return nil
	}
	dir := t.dir(st.Rdev)
	if dir == "" {
		return nil
	}
	own, _ := filepath.Glob(filepath.Join(dir, "holders", "*"))
	parts, _ := filepath.Glob(filepath.Join(dir, "*", "holders", "*"))
	var all []Holder
	for _, p := range append(own, parts...) {
		where := "/dev/" + filepath.Base(p)
		if name := text(p, "dm", "name"); name != "" {
			where += " (" + name + ")"
		}
		all = append(all, Holder{Kind: "device", Where: where})
	}
	return all
}

// Mapped is a device-mapper device.
type Mapped struct{ Name, UUID, Path string }

// MappedOver lists the device-mapper devices whose live tables lead to the device at path.
func MappedOver(path string) ([]Mapped, error) {
	st, err := host.stat(path)
	if err != nil {
		return nil, err
	}
	return host.mappedOver(st), nil
}

func (t tree) mappedOver(st sys.Stat) []Mapped {
	dir := t.dir(st.Rdev)
	if dir == "" || !st.IsBlock() {
		return nil
	}
	var all []Mapped
	found, _ := filepath.Glob(filepath.Join(dir, "holders", "*"))
	for _, p := range found {
		if name := text(p, "dm", "name"); name != "" {
			all = append(all, Mapped{Name: name, UUID: text(p, "dm", "uuid"), Path: "/dev/" + filepath.Base(p)})
		}
	}
	return all
}

// Is says whether the holder is that device.
func (m Mapped) Is(h Holder) bool {
	return h.Kind == "device" && (h.Where == m.Path || strings.HasPrefix(h.Where, m.Path+" "))
}

// loopsOver are the loop devices over the device or file, which no lock keeps away and no process
// has open.
func (t tree) loopsOver(st sys.Stat) []Holder {
	u := t.object(st)
	dirs, _ := filepath.Glob(filepath.Join(t.sys, "block", "loop*"))
	var all []Holder
	for _, dir := range dirs {
		if back, err := t.backing(dir); err == nil && u.is(back) {
			all = append(all, Holder{Kind: "loop", Where: "/dev/" + filepath.Base(dir)})
		}
	}
	return all
}
