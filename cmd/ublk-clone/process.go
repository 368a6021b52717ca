package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// This file is about the process of a daemon: what it owes to whoever frees memory by writing to its device (I9),
// and the place that it runs in.
//
// A daemon runs in the mount namespace of process 1, whoever starts it, or in one that follows it. In a namespace of its
// own, as `unshare` gives, it would keep copies of mounts: a file system on a clone, its own or another, would stay
// mounted there when it has long been unmounted for everybody else, and the clone in use for ever. And its live
// map would be there, where the next daemon does not look (I6). That of a sandboxed unit follows: what is mounted and
// unmounted outside is so inside, and the live maps' tmpfs was mounted outside before (unit-prepare).

// prepare makes the process one that memory reclaim does not wait for in a circle. Its memory is locked later,
// when there is most of it.
func (d *daemon) prepare() error {
	giveProcessors(d.start.Definition.Queues)
	if err := sys.DieQuickly(); err != nil {
		return &exit.Error{Code: exit.Other, Doing: "prepare the process", Cause: err}
	}
	if err := sys.NoHugePages(); err != nil {
		d.log.Warn().Err(err).Msg("the kernel may keep requests waiting while it rearranges the daemon's memory")
	}
	if err := sys.SetIOFlusher(); err != nil {
		d.log.Warn().Err(err).Msg("the kernel may wait for this daemon while it frees memory for it")
	}
	// Whoever waits for the device waits for the daemon; killing it frees what is little and bounded.
	if err := sys.SpareFromOOM(); err != nil {
		d.log.Warn().Err(err).Msg("the kernel may kill this daemon when memory runs out")
	}
	return nil
}

// otherThreads is how many threads may run Go code beside those of the loops: the committer, the control socket.
const otherThreads = 2

// giveProcessors lets every loop wait in the kernel without giving up its place in Go's scheduler (uring.Ring.Enter). With
// no more places than CPUs, the hydrator that waited for the source kept the only one for up to 20 ms, and the queue
// waited with a write that had long ended: on one CPU that was the p99 of writes during hydration, 60 times what it is
// without.
func giveProcessors(queues int) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), queues+hydratorThreads+otherThreads))
}

// lockMemory keeps the daemon from waiting for memory on a write's way. What is mapped later, the queues' buffers
// among it, is locked as it comes. The live map is left out: its tmpfs is never swapped out, and pages of it are
// given back.
func (e *cloneEngine) lockMemory() error {
	reserveHeap()
	err := sys.LockMemory()
	if err != nil {
		e.warn("the daemon's memory is not locked (%v): when memory is short the clone may be slow, or stand still if swap lies on it", err)
	}
	return e.live.Unlock()
}

// warmUp takes the memory that the steps will need. On an emulated CPU (6.12) it was 1.8 s of the 3.8 s from one daemon
// to the next; 0.4 s are left.
func (e *cloneEngine) warmUp() error {
	def := &e.start.Definition
	n, size := queueBuffers(def.RegionSize, def.QueueDepth)
	sizes := append(slices.Repeat([]int64{int64(n) * size}, def.Queues), hydratorBuffers*defaultBatchBytes)
	for _, size := range sizes {
		m, err := e.allocate(size)
		if err != nil {
			return err
		}
		e.spare = append(e.spare, m)
	}
	warmThreads(def.Queues + hydratorThreads + controlThreads + otherThreads)
	reserveHeap()
	return sys.TouchProgram()
}

// Threads that a clone has for itself: they are locked, and end with their goroutines.
const (
	hydratorThreads = 1
	controlThreads  = 1
)

// warmThreads has so many threads made, which Go keeps for whoever locks one next. A process that cannot have them ends here,
// while the daemon that is to be replaced serves.
func warmThreads(n int) {
	var ready, all sync.WaitGroup
	ready.Add(n)
	for range n {
		all.Go(func() {
			defer guard.Guard("thread", guard.Fatal)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			ready.Wait() // each has one of its own
		})
	}
	all.Wait()
}

// garbage is how much the collector lets pile up where little lives, and reserve the memory that there is for it, in bytes.
// The collector works beside others, who go on allocating: on an emulated CPU more than a garbage, and then the heap grew,
// by 1024 page faults of the queue's thread (TestNoPageFaults).
const (
	garbage = 2 << 20
	reserve = 2 * garbage
)

// reserveHeap makes the heap as large as it becomes between two collections, while there is no harm in it. Go's
// own setting doubles what lives, but lets at least 4 MiB pile up. What lives is 1 MiB for a small clone and 33 MiB for one
// of 16 TiB, most of it without a pointer: the collector comes sooner, at little cost.
func reserveHeap() {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetGCPercent(int(min(50, 100*garbage/m.HeapAlloc)))
	runtime.KeepAlive(make([]byte, reserve))
}

// settledPages is how many pages of the region map have memory from the start: 8 MiB, which is the map of 126
// GiB in regions of 4 KiB, or 2 TiB in regions of 64 KiB. Others take it when they are first marked.
const settledPages = 2048

// settlePages takes the memory of the first pages of the region map, those that need none left out.
func (e *cloneEngine) settlePages(nr uint64, spared func(page uint64) bool) error {
	for page := range min(nr, settledPages) {
		if spared(page) {
			continue
		}
		if err := e.live.Touch(page); err != nil {
			return &exit.Error{Code: exit.Other, Doing: "take memory for the region map", Object: livemap.Folder, Cause: err, Next: "Free some memory."}
		}
	}
	return nil
}

// elsewhere says whether this process is in another mount namespace than process 1, and not in a unit's that follows it.
func elsewhere() (bool, error) {
	here, err := sys.InInitMounts()
	if err != nil {
		return false, &exit.Error{Code: exit.Denied, Doing: "find the mount namespace of process 1", Cause: err,
			Next: "Daemons run there. Run it as root, with CAP_SYS_ADMIN and CAP_SYS_PTRACE."}
	}
	stays := os.Getenv("NOTIFY_SOCKET") != "" && follows() == nil // no sandbox but a unit's is anything to stay for
	return !here && !stays, nil
}

// follows fails, and says why, unless this mount namespace gets the mounts and unmounts of another (its root is a slave:
// mount_namespaces(7)) and has the live maps of process 1.
func follows() error {
	roots, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter("/"))
	if err != nil {
		return err
	}
	if len(roots) == 0 || !strings.Contains(roots[len(roots)-1].Optional, "master:") {
		return errors.New("its mounts do not follow those of process 1")
	}
	here, err := sys.StatPath(livemap.Folder)
	there, errThere := sys.StatPath("/proc/1/root" + livemap.Folder)
	run, errRun := sys.StatPath(filepath.Dir(livemap.Folder))
	if err := errors.Join(err, errThere, errRun); err != nil {
		return err
	}
	if !sameObject(here, there) || here.Dev == run.Dev {
		return errors.New(livemap.Folder + " is not the tmpfs that process 1 has there")
	}
	return nil
}

// sameThere fails if a path of the definition, or the folder of the sockets, means something else in the mount
// namespace of process 1.
func (d runDir) sameThere(def *definition) error {
	if away, err := elsewhere(); !away {
		return err
	}
	places := []struct {
		code       int
		what, path string
	}{
		{exit.Source, "the source", def.Source}, {exit.Dest, "the destination", def.Dest}, {exit.Metadata, "the metadata", def.Metadata},
		{exit.Other, "the folder of sockets", string(d)},
	}
	here := make([]sys.Stat, len(places))
	for i, place := range places {
		here[i], _ = statOrFolder(place.path) // what cannot be found is the daemon's to complain of
	}
	return sys.DoInInitMounts(func() error {
		for i, place := range places {
			there, err := statOrFolder(place.path)
			if err == nil && sameObject(here[i], there) {
				continue
			}
			return &exit.Error{Code: place.code, Doing: "find " + place.what, Object: place.path,
				Cause: errors.New("this command runs in a mount namespace of its own, and for process 1, where the daemon will run, that is something else"),
				Next:  "Use a path that is the same in both, or run it outside."}
		}
		return nil
	})
}

// statOrFolder describes what path names, or its folder if it is missing.
func statOrFolder(path string) (sys.Stat, error) {
	st, err := sys.StatPath(path)
	if errors.Is(err, fs.ErrNotExist) {
		return sys.StatPath(filepath.Dir(path))
	}
	return st, err
}

// sameObject: nodes of the same device in two folders are.
func sameObject(a, b sys.Stat) bool {
	if a.IsBlock() && b.IsBlock() {
		return a.Rdev == b.Rdev
	}
	return a.Mode == b.Mode && a.Dev == b.Dev && a.Inode == b.Inode
}

// settle brings a process that is to be a daemon to the place where daemons run. Where that is another mount
// namespace the process begins anew there, and settle does not return.
func settle() error {
	away, err := elsewhere()
	if away {
		if err = sys.DoInInitMounts(sys.ExecAgain); err != nil {
			err = fmt.Errorf("leave the mount namespace (%w): %w", follows(), err)
		}
	}
	if err == nil {
		err = os.Chdir("/") // the folder may lie on a clone
	}
	if err == nil {
		err = sys.SetName("ublk-clone")
	}
	if err != nil {
		return fmt.Errorf("settle the daemon: %w", err)
	}
	return nil
}
