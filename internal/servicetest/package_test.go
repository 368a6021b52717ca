//go:build service

package servicetest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Directories of packages that scripts/service-tests has built; the second is of a later version.
const (
	packages     = "../../build/packages"
	packagesNext = "../../build/packages-next"
)

// packageFile is the one package of that kind in a directory.
func packageFile(t *testing.T, dir, kind string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*."+kind))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s in %s: %q, %v", kind, dir, found, err)
	}
	path, err := filepath.Abs(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// onHost runs a command of this machine that must succeed.
func onHost(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// install installs the deb of a directory, or upgrades to it.
func (g *guest) install(dir string) {
	g.Helper()
	g.Log(g.run("dpkg", "-i", "/host"+packageFile(g.T, dir, "deb")))
}

// versionOf is the version of a directory's deb without the packages' own number.
func versionOf(t *testing.T, dir string) string {
	t.Helper()
	version := strings.TrimSpace(onHost(t, "dpkg-deb", "-f", packageFile(t, dir, "deb"), "Version"))
	return strings.TrimSuffix(version, "-1")
}

// TestLintian: Debian's own check of packages finds nothing but what is listed with its reason.
func TestLintian(t *testing.T) {
	runs.On(t, "6.18")
	out := onHost(t, "lintian", "--allow-root", "--fail-on", "error,warning", packageFile(t, packages, "deb"))
	if out != "" {
		t.Error(out)
	}
	out = onHost(t, "lintian", "--allow-root", "--fail-on", "none", "--display-info", packageFile(t, packages, "deb"))
	if strings.Contains(out, "-override ") {
		t.Errorf("an override that is not needed: %s", out)
	}
}

// TestRPM: it can be installed, and has the files of the deb.
func TestRPM(t *testing.T) {
	runs.On(t, "6.18")
	pkg := packageFile(t, packages, "rpm")
	root := t.TempDir()
	onHost(t, "rpm", "--root", root, "--install", "--test", "--nodeps", pkg)

	debian := []string{"/usr/share/doc/ublk-clone/changelog.Debian.gz", "/usr/share/lintian/overrides/ublk-clone"}
	want := []string{}
	for line := range strings.Lines(onHost(t, "dpkg-deb", "-c", packageFile(t, packages, "deb"))) {
		path := strings.TrimPrefix(strings.Fields(line)[5], ".")
		if !strings.HasSuffix(path, "/") && !slices.Contains(debian, path) {
			want = append(want, strings.Replace(path, "/zsh/vendor-completions/", "/zsh/site-functions/", 1))
		}
	}
	want = append(want, "/etc/ublk-clone", "/var/lib/ublk-clone")
	got := strings.Fields(onHost(t, "rpm", "-qlp", pkg))
	slices.Sort(want)
	slices.Sort(got)
	if len(got) < 15 || !slices.Equal(got, want) {
		t.Errorf("files of the rpm: %q\nof the deb: %q", got, want)
	}
}

// TestPackagesRepeat: the same tree makes the same packages.
func TestPackagesRepeat(t *testing.T) {
	runs.On(t, "6.18")
	again := filepath.Join(t.TempDir(), "packages")
	onHost(t, "../../scripts/package", again)
	for _, kind := range []string{"deb", "rpm"} {
		var sums [2]string
		for i, dir := range []string{packages, again} {
			text, err := os.ReadFile(packageFile(t, dir, kind))
			if err != nil {
				t.Fatal(err)
			}
			sums[i] = fmt.Sprintf("%x", sha256.Sum256(text))
		}
		if sums[0] != sums[1] {
			t.Errorf("two builds make two %ss: %q", kind, sums)
		}
	}
}

// TestPackage: the deb is installed, used, upgraded under load, and removed when no clone is left.
func TestPackage(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	g := newGuest(t, options{disks: map[string]int64{"source": 128 << 20, "dest": 128 << 20, "metadata": 16 << 20}})
	g.boot()
	g.install(packages)
	g.isVersion(packages)
	g.run("test", "-c", "/dev/ublk-control")
	g.checkManuals()
	g.checkCompletions()

	g.sh(`
		mkfs.ext4 -q /dev/disk/by-id/virtio-source
		ublk-clone add data --source /dev/disk/by-id/virtio-source --dest /dev/disk/by-id/virtio-dest \
			--metadata /dev/disk/by-id/virtio-metadata --rate 1MiB/s
		mount /dev/ublkb0 /mnt`)
	load := g.start(commandLimit, "fio", "--name=load", "--directory=/mnt", "--size=16m", "--rw=randwrite", "--bs=4k",
		"--direct=1", "--rate_iops=100", "--time_based", "--runtime=40", "--verify=crc32c", "--verify_backlog=64")
	g.waitFor(commandLimit, "the load to read what it wrote", func() error { return g.reads("/dev/ublkb0", 100) })
	if o := g.try("dpkg", "-r", "ublk-clone"); o.code == 0 || !strings.Contains(o.stderr, "in use: data") {
		t.Errorf("removed beneath a clone: %+v", o)
	}
	g.isVersion(packages)
	before := g.daemon("data")
	g.install(packagesNext)
	g.isVersion(packagesNext)
	if after := g.daemon("data"); after == before {
		t.Errorf("after the upgrade the daemon is still process %s", after)
	}
	load.must()

	g.write("/etc/ublk-clone/other.toml", "source = \"/x\"\n")
	g.sh(`
		umount /mnt
		ublk-clone del data
		dpkg -r ublk-clone`)
	if o := g.try("test", "-e", "/usr/sbin/ublk-clone"); o.code == 0 {
		t.Error("the program is there after the removal")
	}
	if out := g.sh(`dpkg -P ublk-clone 2>&1`); !strings.Contains(out, "kept: /etc/ublk-clone") {
		t.Errorf("the purge says: %s", out)
	}
	g.run("test", "-e", "/etc/ublk-clone/other.toml")
}

// reads fails until so many requests have been read from a disk.
func (g *guest) reads(disk string, want int) error {
	var n int
	stat := g.read("/sys/block/" + filepath.Base(disk) + "/stat")
	if _, err := fmt.Sscan(stat, &n); err != nil {
		return err
	}
	if n < want {
		return fmt.Errorf("%d of %d reads", n, want)
	}
	return nil
}

// isVersion tells which package is installed and run.
func (g *guest) isVersion(dir string) {
	g.Helper()
	want := "ublk-clone " + versionOf(g.T, dir) + " "
	if got := g.run("/usr/sbin/ublk-clone", "version"); !strings.HasPrefix(got, want) {
		g.Errorf("the version is %q, not %q", got, want)
	}
}

// daemon is the process of a clone's daemon, which must run the program that is installed.
func (g *guest) daemon(name string) string {
	g.Helper()
	pid := strings.TrimSpace(g.sh(`
		for exe in /proc/[0-9]*/exe; do
			case $(readlink "$exe") in /usr/sbin/ublk-clone*) echo "$exe $(readlink "$exe")" ;; esac
		done`))
	if !strings.HasSuffix(pid, "/exe /usr/sbin/ublk-clone") || strings.Count(pid, "\n") > 0 {
		g.Errorf("daemons, of clone %s alone: %s", name, pid)
	}
	return pid
}

// checkManuals has both readers of manuals look at them.
func (g *guest) checkManuals() {
	g.Helper()
	for page, says := range map[string]string{"ublk-clone.8": "restart [NAME]", "ublk-clone.toml.5": "hydration-batch-size"} {
		path := "/usr/share/man/man" + page[len(page)-1:] + "/" + page + ".gz"
		if out := g.sh("zcat " + path + " | mandoc -Tlint -W warning"); out != "" {
			g.Errorf("mandoc on %s: %s", page, out)
		}
		out := g.try("bash", "-c", "MANWIDTH=80 MANPAGER=cat man --warnings -l "+path)
		if out.code != 0 || out.stderr != "" {
			g.Errorf("man on %s: exit status %d, %s", page, out.code, out.stderr)
		}
		words := strings.Join(strings.Fields(out.stdout), " ")
		if !strings.Contains(words, strings.Fields(says)[0]) || len(words) < 2000 {
			g.Errorf("man shows of %s: %s", page, words)
		}
	}
}

// checkCompletions asks each shell, by its own way to complete, what may follow "ublk-clone re" and
// a flag.
func (g *guest) checkCompletions() {
	g.Helper()
	const verbs = "recover restart resume"
	g.write("/root/complete.bash", `
		. /usr/share/bash-completion/bash_completion
		_completion_loader ublk-clone
		complete -p ublk-clone >&2
		COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
		_ublk_clone
		echo "${COMPREPLY[@]}"`)
	g.write("/root/complete.zsh", `
		zmodload zsh/zpty
		zpty shell 'PS1= TERM=dumb zsh -f -i'
		zpty -w shell 'autoload -Uz compinit; compinit -D -u; LISTMAX=100; unsetopt zle_bracketed_paste; stty -echo; echo ready-$((1+1))'
		until [[ $out = *ready-2* ]]; do zpty -r shell out || exit 1; done
		zpty -w -n shell "$1"$'\t\t'
		all=
		for i in {1..150}; do
			sleep 0.2
			while zpty -r -t shell out; do all+=$out; done
			[[ $all != *$2* ]] || break
		done
		print -r -- "$all"`)
	for _, c := range []struct{ line, want string }{
		{"ublk-clone re", verbs},
		{"ublk-clone add x --read-through ", "on off"},
	} {
		for shell, out := range map[string]string{
			"bash": g.run("bash", append([]string{"/root/complete.bash"}, strings.Split(c.line, " ")...)...),
			"fish": g.run("fish", "-c", fmt.Sprintf("complete -C %q", c.line)),
			"zsh":  g.run("zsh", "-f", "/root/complete.zsh", c.line, c.want[strings.LastIndex(c.want, " ")+1:]),
		} {
			for _, word := range strings.Fields(c.want) {
				if !slices.Contains(strings.Fields(out), word) {
					g.Errorf("%s completes %q with %q: %s is not there", shell, c.line, out, word)
				}
			}
		}
	}
}
