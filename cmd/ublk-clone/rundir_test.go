package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

func TestDefinitionsAreKept(t *testing.T) {
	dir := runDir(t.TempDir() + "/run")
	if names, err := dir.names(); err != nil || names != nil {
		t.Errorf("names without a folder: %q, %v", names, err)
	}
	if err := dir.create(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(string(dir))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", info, err)
	}
	want := definition{Name: "b", Source: "/dev/s", Queues: 2, RegionSize: 8192}
	for _, def := range []*definition{&want, {Name: "a"}} {
		if err := dir.store(def); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir.definition("-no-name"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if names, err := dir.names(); err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("names: %q, %v", names, err)
	}
	got, err := dir.load("b")
	if err != nil || *got != want {
		t.Errorf("load: %+v, %v", got, err)
	}
	if _, err := dir.load("c"); exit.Code(err) != exit.NoClone {
		t.Errorf("load of none: %v", err)
	}
}

func TestNameLock(t *testing.T) {
	dir := runDir(t.TempDir())
	l, err := dir.acquire("c")
	if err != nil {
		t.Fatal(err)
	}
	if !dir.alive("c") || dir.alive("other") {
		t.Error("alive does not tell who holds its lock")
	}
	if _, err := dir.acquire("c"); exit.Code(err) != exit.Busy {
		t.Errorf("second lock: %v", err)
	}
	if err := l.release(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir.lock("c")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("lock file after release: %v", err)
	}
	if dir.alive("c") {
		t.Error("alive after release")
	}
	if l, err = dir.acquire("c"); err != nil {
		t.Fatal(err)
	}
	if err := l.release(); err != nil {
		t.Error(err)
	}
}

func TestDefinitionCheck(t *testing.T) {
	good := definition{Name: "c", Source: "/s", Dest: "/d", Metadata: "/m", Queues: 1, QueueDepth: 1}
	if err := good.check(); err != nil {
		t.Errorf("good: %v", err)
	}
	for name, spoil := range map[string]func(*definition){
		"no name":         func(d *definition) { d.Name = "" },
		"path as name":    func(d *definition) { d.Name = "../x" },
		"dot first":       func(d *definition) { d.Name = ".x" },
		"65 letters":      func(d *definition) { d.Name = strings.Repeat("x", 65) },
		"no source":       func(d *definition) { d.Source = "" },
		"no dest":         func(d *definition) { d.Dest = "" },
		"no metadata":     func(d *definition) { d.Metadata = "" },
		"odd region":      func(d *definition) { d.RegionSize = 4097 },
		"small region":    func(d *definition) { d.RegionSize = 2048 },
		"large region":    func(d *definition) { d.RegionSize = 2 << 30 },
		"no queue":        func(d *definition) { d.Queues = 0 },
		"too many queues": func(d *definition) { d.Queues = maxQueues + 1 },
		"no depth":        func(d *definition) { d.QueueDepth = 0 },
		"too deep":        func(d *definition) { d.QueueDepth = maxQueueDepth + 1 },
	} {
		d := good
		spoil(&d)
		if err := d.check(); exit.Code(err) != exit.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDifferences(t *testing.T) {
	a := definition{Name: "c", Source: "/s", Queues: 1}
	b := a
	if diff := a.differences(&b); diff != "" {
		t.Errorf("equal definitions differ: %s", diff)
	}
	b.Source, b.Queues = "/t", 2
	if diff := a.differences(&b); diff != "source is /s, not /t; queues is 1, not 2" {
		t.Errorf("differences: %s", diff)
	}
}

func TestDefaults(t *testing.T) {
	d := definition{}
	d.fillIn()
	if d.RegionSize != 4096 || d.Batch != 256 || d.Threshold != 1024 {
		t.Errorf("defaults: %+v", d)
	}
	d = definition{RegionSize: 1 << 30, Threshold: 3}
	d.fillIn()
	if d.Batch != 1 || d.Threshold != 3 {
		t.Errorf("defaults of large regions: %+v", d)
	}
}
