package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// healthy is a machine on which doctor finds nothing.
type healthy struct {
	*machine
	t *testing.T
}

const goodRelease = "7.0.1-test"

func newHealthy(t *testing.T) *healthy {
	t.Helper()
	h := &healthy{t: t, machine: &machine{
		root: t.TempDir(), dir: "/run/ublk-clone", records: "/var/lib/ublk-clone", maps: "/run/ublk-clone-maps",
		owner:   func(string) (int, error) { return 0, nil },
		free:    func(string) (int64, error) { return 1 << 30, nil },
		write:   func(string) error { return nil },
		ring:    func() error { return nil },
		driver:  func() (ublk.Features, error) { return offered(), nil },
		noSwap:  func() error { return nil },
		program: func(string) (string, error) { return "/sbin/blkid", nil },
		clones:  func() ([]control.Status, error) { return nil, nil },
		orphans: func() ([]definition.Definition, error) { return nil, nil },
	}}
	h.put("proc/sys/kernel/osrelease", goodRelease)
	h.put("proc/sys/kernel/io_uring_disabled", "0")
	h.put("proc/self/status", "Name:\tx\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff")
	h.put("proc/self/limits", "Limit Soft Hard Units\nMax open files 1024 524288 files\nMax locked memory 8388608 8388608 bytes")
	h.put("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 4000000 kB")
	h.put("dev/ublk-control", "")
	h.put("sys/module/ublk_drv/parameters/ublks_max", "64")
	h.put("etc/machine-id", "0123")
	h.mounted("tmpfs", "rw,mode=700,noswap")
	for _, dir := range []string{h.dir, h.records} {
		if err := os.MkdirAll(h.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// offered is what a driver that has everything offers.
func offered() ublk.Features {
	return ublk.Features{IoctlEncode: true, UserRecovery: true, UserRecoveryReissue: true, UserCopy: true, AutoBufReg: true,
		Quiesce: true, SafeStop: true, NoAutoPartScan: true, Bits: 1<<6 | 1<<3 | 1<<4 | 1<<7 | 1<<11 | 1<<12 | 1<<17 | 1<<18}
}

func (h *healthy) put(path, text string) {
	h.t.Helper()
	path = h.path(path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text+"\n"), 0o600)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *healthy) remove(path string) {
	h.t.Helper()
	if err := os.RemoveAll(h.path(path)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *healthy) mounted(kind, options string) {
	h.put("proc/self/mountinfo", "20 1 0:20 / / rw - ext4 /dev/sda rw\n21 20 0:21 / "+h.maps+" rw - "+kind+" none "+options)
}

func (h *healthy) chmod(path string, mode os.FileMode) {
	h.t.Helper()
	if err := os.Chmod(h.path(path), mode); err != nil {
		h.t.Fatal(err)
	}
}

func (h *healthy) capabilities(mask string) {
	h.put("proc/self/status", "Uid:\t0\t0\t0\t0\nCapEff:\t"+mask)
}

// record is of a destination /dest by metadata /meta.
func (h *healthy) record() {
	h.put(h.records+"/a.json", `{"dest":"/dest","metadata":"/meta","hydrated":1048576,"size":2097152}`)
}

const withoutResource = "000001fffeffffff"

// TestDoctorFindsEach plants one problem after the other on a machine that is well: doctor names
// that one, and what to do. Each check finds at least one.
func TestDoctorFindsEach(t *testing.T) {
	finds, planted, ran := map[string]bool{}, 0, 0
	for _, c := range []struct {
		name  string
		plant func(*healthy)
		want  string // check and level of all that is not well
		code  int
		says  string // in text or action
	}{
		{"nothing", func(*healthy) {}, "", exit.OK, "0 problems, 0 warnings, 0 not looked at"},
		{"not root", func(h *healthy) { h.put("proc/self/status", "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0") }, "", exit.OK, "not root"},
		{"no CAP_SYS_ADMIN", func(h *healthy) { h.capabilities("000001ffffdfffff") }, "permission problem", exit.Denied, "CAP_SYS_ADMIN"},
		{"kernel 6.18.5", func(h *healthy) { h.put("proc/sys/kernel/osrelease", "6.18.5-x") }, "kernel problem", exit.Feature, "6.18.6"},
		{"kernel of Ubuntu", func(h *healthy) { h.put("proc/sys/kernel/osrelease", "6.17.0-1015-azure") }, "kernel problem kernel warning", exit.Feature, "NULL"},
		{"kernel 6.12", func(h *healthy) { h.put("proc/sys/kernel/osrelease", "6.12.117+deb13") }, "kernel warning kernel warning", exit.OK, "partitions"},
		{"kernel 6.8", func(h *healthy) { h.put("proc/sys/kernel/osrelease", "6.8.0") },
			"kernel warning kernel warning kernel warning kernel warning", exit.OK, "CVE-2025-37906"},
		{"kernel 7.3", func(h *healthy) { h.put("proc/sys/kernel/osrelease", "7.3.4") }, "", exit.OK, "in part for a whole one"},
		{"module not loaded", func(h *healthy) {
			h.remove("dev/ublk-control")
			h.remove("sys/module/ublk_drv")
			h.put("lib/modules/"+goodRelease+"/modules.dep", "kernel/drivers/block/ublk_drv.ko.xz:")
			h.put("boot/config-"+goodRelease, "CONFIG_BLK_DEV_UBLK=m")
		}, "driver problem", exit.Feature, "modprobe ublk_drv"},
		{"no module", func(h *healthy) {
			h.remove("dev/ublk-control")
			h.remove("sys/module/ublk_drv")
			h.put("boot/config-"+goodRelease, "# CONFIG_BLK_DEV_UBLK is not set")
		}, "driver problem", exit.Feature, "is not set"},
		{"control not to be opened", func(h *healthy) {
			h.write = func(path string) error {
				if strings.HasSuffix(path, controlNode) {
					return syscall.EPERM
				}
				return nil
			}
		}, "driver problem", exit.Denied, "not permitted"},
		{"io_uring off", func(h *healthy) { h.put("proc/sys/kernel/io_uring_disabled", "2") }, "io-uring problem", exit.Feature, "sysctl kernel.io_uring_disabled=0"},
		{"io_uring refused", func(h *healthy) { h.ring = func() error { return fmt.Errorf("set up: %w", syscall.EPERM) } }, "io-uring problem", exit.Feature, "seccomp"},
		{"no io_uring", func(h *healthy) { h.ring = func() error { return syscall.ENOSYS } }, "io-uring problem", exit.Feature, "CONFIG_IO_URING"},
		{"io_uring too old", func(h *healthy) { h.ring = func() error { return errors.New("too old") } }, "io-uring problem", exit.Feature, "too old"},
		{"driver without recovery", func(h *healthy) { h.driver = func() (ublk.Features, error) { return ublk.Features{Bits: 1 << 6}, nil } },
			"features problem", exit.Feature, "UBLK_F_USER_RECOVERY"},
		{"driver without GET_FEATURES", func(h *healthy) {
			h.driver = func() (ublk.Features, error) {
				return ublk.Features{}, &ublk.FeatureError{Name: "GET_FEATURES", Since: "6.5"}
			}
		}, "features problem", exit.Feature, "6.5"},
		{"driver silent", func(h *healthy) {
			h.driver = func() (ublk.Features, error) { return ublk.Features{}, errors.New("no answer") }
		},
			"features problem", exit.Feature, "no answer"},
		{"driver of 6.12", func(h *healthy) {
			h.driver = func() (ublk.Features, error) {
				return ublk.Features{IoctlEncode: true, UserRecovery: true, UserRecoveryReissue: true, Bits: 1<<6 | 1<<3 | 1<<4}, nil
			}
		}, "", exit.OK, "not copied (from 6.16 on)"},
		{"as many devices as can be", func(h *healthy) {
			h.put("proc/sys/kernel/osrelease", "6.12.1")
			h.put("sys/module/ublk_drv/parameters/ublks_max", "1")
			h.put("sys/class/ublk-char/ublkc0", "")
		}, "kernel warning kernel warning devices warning", exit.OK, "ublks_max"},
		{"little memory", func(h *healthy) { h.put("proc/meminfo", "MemAvailable: 20000 kB") }, "memory problem", exit.Other, "19.5 MiB"},
		{"not much memory", func(h *healthy) { h.put("proc/meminfo", "MemAvailable: 50000 kB") }, "memory warning", exit.OK, "48.8 MiB"},
		{"memory not lockable", func(h *healthy) { h.capabilities(withoutResource) }, "memory-lock warning reclaim warning", exit.OK, "LimitMEMLOCK=infinity"},
		{"no CAP_SYS_RESOURCE", func(h *healthy) {
			h.capabilities(withoutResource)
			h.put("proc/self/limits", "Max open files 1024 524288 files\nMax locked memory unlimited unlimited bytes")
		}, "reclaim warning", exit.OK, "CAP_SYS_RESOURCE"},
		{"few open files", func(h *healthy) {
			h.put("proc/self/limits", "Max open files 32 32 files\nMax locked memory unlimited unlimited bytes")
		}, "open-files warning", exit.OK, "LimitNOFILE"},
		{"another file system for the maps", func(h *healthy) { h.mounted("ext4", "rw") }, "live-maps problem", exit.Other, "umount"},
		{"maps may be swapped out", func(h *healthy) { h.mounted("tmpfs", "rw,mode=700") }, "live-maps warning", exit.OK, "swapped"},
		{"maps are full", func(h *healthy) { h.free = func(string) (int64, error) { return 4096, nil } }, "live-maps problem", exit.Other, "remount,size="},
		{"no noswap", func(h *healthy) {
			h.put("proc/self/mountinfo", "20 1 0:20 / / rw - ext4 /dev/sda rw")
			h.noSwap = func() error { return syscall.EINVAL }
		}, "live-maps problem", exit.Feature, "6.4"},
		{"run directory is a file", func(h *healthy) { h.remove(h.dir); h.put(h.dir, "") }, "run-folder problem", exit.Other, "not a directory"},
		{"run directory open to all", func(h *healthy) { h.chmod(h.dir, 0o755) }, "run-folder warning", exit.OK, "chmod 700"},
		{"directories of another's", func(h *healthy) { h.owner = func(string) (int, error) { return 1000, nil } }, "run-folder problem records problem", exit.Denied, "user 1000"},
		{"records cannot be written", func(h *healthy) {
			h.write = func(path string) error {
				if strings.HasSuffix(path, h.records) {
					return syscall.EROFS
				}
				return nil
			}
		}, "records warning", exit.OK, "read-only"},
		{"records no directory", func(h *healthy) { h.remove(h.records); h.put(h.records, "") }, "records warning", exit.OK, "not a directory"},
		{"a record that is not one", func(h *healthy) { h.put(h.records+"/a.json", "{") }, "records problem", exit.Metadata, "a.json"},
		{"metadata vanished", func(h *healthy) { h.record(); h.put("dest", "") }, "records problem", exit.Metadata, "/meta"},
		{"metadata and destination away", func(h *healthy) { h.record() }, "records warning", exit.OK, "missing too"},
		{"metadata there", func(h *healthy) { h.record(); h.put("meta", "") }, "", exit.OK, ""},
		{"no blkid", func(h *healthy) { h.program = func(string) (string, error) { return "", exec.ErrNotFound } }, "blkid problem", exit.Other, "util-linux"},
		{"no machine id", func(h *healthy) { h.remove("etc/machine-id") }, "machine-id warning", exit.OK, "systemd-machine-id-setup"},
		{"a dead clone", func(h *healthy) { h.has(control.Condition{State: control.StateDead, Action: "recover a"}) }, "clones problem", exit.NoAnswer, "recover a"},
		{"a clone in mode ro", func(h *healthy) {
			h.has(control.Condition{State: control.StateStalled, Mode: "ro", Action: "mend"})
		}, "clones warning", exit.OK, "mend"},
		{"a device that is left", func(h *healthy) {
			h.orphans = func() ([]definition.Definition, error) {
				return []definition.Definition{{Added: definition.Added{Device: "/dev/ublkb3"}}}, nil
			}
		}, "left-devices problem", exit.NoAnswer, "prune"},
		{"a device over a destination that is left", func(h *healthy) { h.put("sys/block/dm-3/dm/uuid", "UBLK-CLONE-DEST-gone\n") }, "left-devices warning", exit.OK, "prune"},
		{"a cache that is not flushed", func(h *healthy) {
			h.scsiDisk("write through")
		}, "disks warning", exit.OK, "write back"},
		{"a cache that is flushed", func(h *healthy) { h.scsiDisk("write back") }, "", exit.OK, ""},
		{"no unit", func(h *healthy) { h.put("etc/ublk-clone/a.toml", "") }, "service warning", exit.OK, "unit"},
		{"a wrong definition", func(h *healthy) {
			h.put("etc/ublk-clone/a.toml", "")
			h.put("lib/systemd/system/ublk-clone@.service", "")
			h.definition = func(string) error { return errors.New("line 3") }
		}, "service problem", exit.Usage, "line 3"},
	} {
		planted++
		t.Run(c.name, func(t *testing.T) {
			ran++
			h := newHealthy(t)
			c.plant(h)
			all := Examine(h.machine)
			var text bytes.Buffer
			if err := Write(&text, all); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range all {
				if f.Level == LevelProblem || f.Level == LevelWarning {
					got = append(got, f.Check+" "+string(f.Level))
					finds[f.Check] = true
					if f.Action == "" {
						t.Errorf("no next step: %+v", f)
					}
				}
			}
			if strings.Join(got, " ") != c.want || exit.Code(Problem(all)) != c.code {
				t.Errorf("found %q, exit code %d, expected %q, %d\n%s", got, exit.Code(Problem(all)), c.want, c.code, &text)
			}
			if !strings.Contains(strings.Join(strings.Fields(text.String()), " "), c.says) {
				t.Errorf("it does not say %q:\n%s", c.says, &text)
			}
			for line := range strings.Lines(text.String()) {
				if len(line) > doctorWidth+1 {
					t.Errorf("a line of %d columns: %s", len(line), line)
				}
			}
		})
	}
	for _, c := range Checks {
		if ran == planted && !finds[c.name] {
			t.Errorf("no case above plants what the check %s is to find", c.name)
		}
	}
}

// has has a clone in a condition.
func (h *healthy) has(c control.Condition) { h.hasStatus(control.Status{Condition: c}) }

func (h *healthy) hasStatus(s control.Status) {
	s.Name = "a"
	h.clones = func() ([]control.Status, error) { return []control.Status{s}, nil }
}

// scsiDisk is a disk with a write cache that is a clone's destination, and what the kernel takes it
// for.
func (h *healthy) scsiDisk(mode string) {
	h.put("dev/sdx", "")
	h.put("sys/class/block/sdx/queue/write_cache", mode)
	h.put("sys/class/block/sdx/device/scsi_disk/0:0:0:0/cache_type", "write back")
	h.hasStatus(control.Status{Condition: control.Condition{State: control.StateHydrating, Mode: "rw"}, Devices: control.Devices{Dest: "/dev/sdx"}})
}

func TestKernelVersions(t *testing.T) {
	for _, c := range []struct {
		release string
		want    kernelVersion
	}{{"6.18.15+deb13-cloud-amd64", kernelVersion{6, 18, 15}}, {"7.0-rc4", kernelVersion{7, 0, 0}}, {"6.17.0-1015-azure", kernelVersion{6, 17, 0}}, {"", kernelVersion{}}} {
		if got := parseRelease(c.release); got != c.want {
			t.Errorf("%s: %v", c.release, got)
		}
	}
	if !(kernelVersion{6, 9, 0}).before(kernelVersion{6, 10, 0}) || (kernelVersion{6, 10, 0}).before(kernelVersion{6, 10, 0}) {
		t.Error("versions are not compared as numbers")
	}
}
