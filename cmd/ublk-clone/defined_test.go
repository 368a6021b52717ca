package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// withDefinition is a program with one definition, "data".
func withDefinition(t *testing.T, text string) (*program, *strings.Builder) {
	t.Helper()
	var errs strings.Builder
	p := &program{out: &errs, errs: &errs, dir: control.Dir(t.TempDir()), defined: etc.Dir(t.TempDir())}
	if err := os.WriteFile(p.defined.Path("data"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return p, &errs
}

const threePaths = "source = \"/dev/src\"\ndest = \"/dev/dst\"\nmetadata = \"/var/lib/data.meta\"\n"

// TestDefinitions: a definition is read as add's flags would be, and what is wrong with it is said
// with its path.
func TestDefinitions(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{threePaths, ""},
		{threePaths + "region-size = \"64KiB\"\nqueues = 2\nno-hydration = true\nrate = \"50MiB/s\"\nnetwork = true\n", ""},
		{"table = \"0 1048576 clone /dev/meta /dev/dst /dev/src 8\"\n", ""},
		{threePaths + "region_size = 4096\n", `unknown key "region_size"`},
		{threePaths + "region-size = \"5000\"\n", "a power of two"},
		{threePaths + "queues = \"many\"\n", "queues"},
		{threePaths + "force = true\n", `unknown key "force"`},
		{threePaths + "rate = [1]\n", "rate: it must be a string"},
		{threePaths + "rate = true\n", "rate: it must be a string or a number, not true"},
		{threePaths + "queues = 2.5\n", "queues: it must be a string or a number, not 2.5"},
		{threePaths + "network = \"yes\"\n", `network: it must be true or false, without quotes, not "yes"`},
		{threePaths + "network = 5\n", "network: it must be true or false"},
		{threePaths + "no-hydration = \"true\"\n", "no-hydration: it must be true or false"},
		{threePaths + "source-shared = 1\n", "source-shared: it must be true or false"},
		{threePaths + "help = true\n", `unknown key "help"`},
		{threePaths + "h = true\n", `unknown key "h"`},
		{threePaths + "o = \"json\"\n", `unknown key "o"`},
		{threePaths + "hydration-threshold = 64\n", ""},
		{threePaths + "rate = \"fast\"\n", "rate"},
		{"source = \"src\"\n", "must be absolute"},
		{"source = \"/dev/src\"\ndest = \"/dev/dst\"\n", "--metadata is missing"},
		{"source =\n", "data.toml"},
		{threePaths + "table = \"0 1 clone a b c 8\"\n", "exclude each other"},
	} {
		p, _ := withDefinition(t, c.text)
		err := checkDefined(p.defined, "data")
		if c.says == "" {
			if err != nil {
				t.Errorf("%q: %v", c.text, err)
			}
			continue
		}
		if exit.Code(err) != exit.Usage || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), p.defined.Path("data")) {
			t.Errorf("%q: %v (exit code %d), expected %q and the path", c.text, err, exit.Code(err), c.says)
		}
	}
	p, _ := withDefinition(t, threePaths)
	if err := os.Chmod(p.defined.Path("data"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := checkDefined(p.defined, "data"); err == nil || !strings.Contains(err.Error(), "others than root") {
		t.Errorf("a definition that all may write: %v", err)
	}
	if err := checkDefined(p.defined, "other"); err == nil || !strings.Contains(err.Error(), "no definition "+p.defined.Path("other")) {
		t.Errorf("no definition: %v", err)
	}
}

// TestDefinedAndFlags: the command line goes before the definition.
func TestDefinedAndFlags(t *testing.T) {
	p, errs := withDefinition(t, threePaths+"queues = 99\n")
	if code := p.run([]string{"ublk-clone", "add", "data"}); code != exit.Usage || !strings.Contains(errs.String(), "--queues 99") {
		t.Errorf("the definition's queues: exit code %d, %s", code, errs)
	}
	errs.Reset()
	if code := p.run([]string{"ublk-clone", "add", "data", "--queues", "77"}); code != exit.Usage || !strings.Contains(errs.String(), "--queues 77") {
		t.Errorf("the command line's queues: exit code %d, %s", code, errs)
	}
}

// TestGenerator: what a definition adds to its unit and to udev's rules.
func TestGenerator(t *testing.T) {
	p, _ := withDefinition(t, "source = \"/dev/nbd0\"\ndest = \"/dev/disk/by-id/virtio-dest\"\nmetadata = \"/srv/my meta/data.meta\"\nnetwork = true\n")
	if err := os.WriteFile(p.defined.Path("my-clone"), []byte("table = \"0 8 clone /dev/m /dev/vdb /images/s 8\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.defined.Path("broken"), []byte("dest = \"/dev/vdz\"\nsource ="), 0o644); err != nil {
		t.Fatal(err)
	}
	dir, rules := t.TempDir(), filepath.Join(t.TempDir(), "60-x.rules")
	if err := p.defined.Generate(dir, rules); err == nil || !strings.Contains(err.Error(), "broken.toml") {
		t.Errorf("a broken definition: %v", err)
	}
	contains(t, filepath.Join(dir, "ublk-clone@data.service.d/50-definition.conf"), "After=dev-nbd0.device\n",
		`After=dev-disk-by\x2did-virtio\x2ddest.device`, `RequiresMountsFor="/srv/my meta/data.meta"`, `ReadWritePaths="-/srv/my meta"`,
		`Before=blockdev@dev-ublk\x2dclone-data.target`, "After=network-online.target", "Before=remote-fs.target")
	contains(t, filepath.Join(dir, "ublk-clone@my-clone.service.d/50-definition.conf"), "After=dev-vdb.device\n", "Before=local-fs.target",
		`Before=blockdev@dev-ublk\x2dclone-my\x2dclone.target`, `RequiresMountsFor="/images/s"`)
	contains(t, rules, `SYMLINK=="disk/by-id/virtio-dest", ENV{UBLK_CLONE_DEST}="data"`, `KERNEL=="vdb", ENV{UBLK_CLONE_DEST}="my-clone"`,
		`KERNEL=="vdz", ENV{UBLK_CLONE_DEST}="broken"`)
	if got := etc.Loosened([]string{etc.Quoted("-/root"), etc.Quoted("-/root/x")}) + etc.Loosened([]string{etc.Quoted("-/")}) + etc.Loosened([]string{etc.Quoted("-/srv")}); got != "ProtectHome=no\nProtectSystem=full\n" {
		t.Errorf("directories that the sandbox makes read-only itself: %q", got)
	}

	for _, name := range []string{"data", "my-clone", "broken"} {
		if err := os.Remove(p.defined.Path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(rules+".new", nil, 0o644); err != nil { // of a generator that was killed
		t.Fatal(err)
	}
	if err := p.defined.Generate(t.TempDir(), rules); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(rules + "*"); len(left) > 0 {
		t.Errorf("without definitions there are still rules: %v", left)
	}
}

func contains(t *testing.T, path string, lines ...string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	for _, line := range lines {
		if !strings.Contains(string(b), line) {
			t.Errorf("%s lacks %q:\n%s", path, line, b)
		}
	}
}

// TestClonetab: systemd's lines become definitions that add takes; nothing is written if one line
// is wrong.
func TestClonetab(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{"# none\n\n", ""},
		{"a /dev/s /dev/d /dev/m\nb /dev/s2 /dev/d2 /dev/m2 -\n", ""},
		{"a /dev/s /dev/d /dev/m region_size=16\nb /dev/s2 /dev/d2 /dev/m2 region-size=64K", ""},
		{"a /dev/s /dev/d /dev/m\nb /dev/s2 /dev/d2\n", "line 2: 3 fields"},
		{"a /dev/s /dev/d /dev/m region-size=5000", "a power of two"},
		{"a /dev/s /dev/d /dev/m colour=red", "colour=red"},
		{"a /dev/s /dev/d /dev/m\na /dev/s /dev/d /dev/m", "twice"},
		{"../a /dev/s /dev/d /dev/m", "letters"},
		{"a s /dev/d /dev/m", "absolute"},
	} {
		var out strings.Builder
		p := &program{out: &out, errs: &out, dir: control.Dir(t.TempDir()), defined: etc.Dir(t.TempDir())}
		tab := filepath.Join(t.TempDir(), "clonetab")
		if err := os.WriteFile(tab, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		code := p.run([]string{"ublk-clone", "import-clonetab", tab})
		names, err := p.defined.Names()
		if err != nil {
			t.Fatal(err)
		}
		if c.says != "" {
			if code != exit.Usage || !strings.Contains(out.String(), c.says) || len(names) != 0 {
				t.Errorf("%q: exit code %d, %s; %d written; expected %q", c.text, code, out.String(), len(names), c.says)
			}
			continue
		}
		if code != exit.OK || len(names) != strings.Count(c.text, "/dev/m") {
			t.Errorf("%q: exit code %d, %s; %d written", c.text, code, out.String(), len(names))
		}
		for _, name := range names {
			if err := checkDefined(p.defined, name); err != nil {
				t.Errorf("%q: %v", c.text, err)
			}
		}
		if code := p.run([]string{"ublk-clone", "import-clonetab", tab}); code != exit.OK {
			t.Errorf("%q again: exit code %d, %s", c.text, code, out.String())
		}
	}
	p, errs := withDefinition(t, threePaths)
	tab := filepath.Join(t.TempDir(), "clonetab")
	if err := os.WriteFile(tab, []byte("new /dev/a /dev/b /dev/c\ndata /dev/s /dev/d /dev/m region_size=16\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code := p.run([]string{"ublk-clone", "import-clonetab", tab}); code != exit.Exists {
		t.Errorf("a clone that is defined otherwise: exit code %d, %s", code, errs)
	}
	if def, err := p.defined.Load("new"); def != nil || err != nil {
		t.Errorf("something was imported: %v, %v", def, err)
	}
}

// TestClonetabOrder: a mix-up of source and destination would destroy data.
func TestClonetabOrder(t *testing.T) {
	lines, err := etc.ParseClonetab([]byte("name /dev/source /dev/destination /dev/metadata region-size=64K\n"))
	if err != nil || len(lines) != 1 {
		t.Fatal(lines, err)
	}
	if want := (etc.TabLine{Name: "name", Source: "/dev/source", Dest: "/dev/destination", Metadata: "/dev/metadata", RegionSize: 64 << 10}); lines[0] != want {
		t.Errorf("%+v, expected %+v", lines[0], want)
	}
}

// TestRetire: the definition of a clone that is finished is out of the next boot's way before
// anything else is done, and back if the clone goes on.
func TestRetire(t *testing.T) {
	p, _ := withDefinition(t, threePaths)
	back, err := p.defined.Retire("data")
	if err != nil {
		t.Fatal(err)
	}
	if names, err := p.defined.Names(); len(names) != 0 || err != nil {
		t.Errorf("retired, and still there: %v, %v", names, err)
	}
	if err := back(); err != nil {
		t.Error(err)
	}
	if names, err := p.defined.Names(); len(names) != 1 || err != nil {
		t.Errorf("taken back: %v, %v", names, err)
	}
	if _, err := p.defined.Retire("none"); err != nil {
		t.Errorf("a clone that is not defined there: %v", err)
	}
}
