//go:build service

package servicetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestServiceMany: twenty clones at once, or six without FULL, over a reboot. Figures for the docs
// are in the log.
func TestServiceMany(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	n := 6
	if os.Getenv("FULL") == "1" {
		n = 20
	}
	g := newGuest(t, options{disks: map[string]int64{}, memory: "3G"})
	g.boot()
	g.install(packages)
	for i := range n {
		g.write(fmt.Sprintf("/etc/ublk-clone/c%d.toml", i), fmt.Sprintf("source = \"/srv/s%[1]d\"\ndest = \"/srv/d%[1]d\"\nmetadata = \"/srv/m%[1]d\"\n", i))
	}
	g.sh(fmt.Sprintf(`
		for i in $(seq 0 %d); do head -c 4M /dev/urandom >/srv/s$i; done
		systemctl daemon-reload
		systemctl enable --now $(for i in $(seq 0 %[1]d); do echo ublk-clone@c$i; done)`, n-1))
	g.allServe(n)
	g.slowManager()
	g.reboot()
	g.run("rm", slowSystemctl)
	if left := strings.Count(g.journal(1), `"device_left":true`); left > 0 {
		t.Errorf("%d clones that nobody had open were left without a daemon when the machine went down", left)
	}
	g.allServe(n)
	g.sh(fmt.Sprintf(`
		for i in $(seq 0 %d); do ublk-clone wait c$i --timeout 3m; cmp -n 4194304 /srv/s$i /dev/ublk-clone/c$i; ublk-clone del c$i; cmp /srv/s$i /srv/d$i; done`, n-1))
	if left := g.run("ublk-clone", "list"); strings.Count(left, "\n") != 1 {
		t.Errorf("left: %s", left)
	}
}

// slowSystemctl comes before the real one in the PATH of units.
const slowSystemctl = "/usr/local/bin/systemctl"

// slowManager has the service manager say its state late, or to every other who asks not at all, as
// it may while it stops everything on a slow machine.
func (g *guest) slowManager() {
	g.Helper()
	g.write(slowSystemctl, `#!/bin/sh
if [ "$1" = is-system-running ]; then
	sleep 8
	[ $(($$ % 2)) = 0 ] || { echo unknown; exit 4; }
fi
exec /usr/bin/systemctl "$@"
`)
	g.run("chmod", "755", slowSystemctl)
}

// journal is what the nth boot has said.
func (g *guest) journal(n int) string {
	g.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, fmt.Sprintf("boot-%d.journal", n)))
	if err != nil {
		g.Fatal(err)
	}
	return string(b)
}

// socketLimit is what a control socket may take.
const socketLimit = 100 * time.Millisecond

// allServe sees that n clones are served and answer, and logs their memory and the time of their
// answers.
func (g *guest) allServe(n int) {
	g.Helper()
	g.waitFor(bootLimit, "all clones", func() error {
		if list := g.run("ublk-clone", "list"); strings.Count(list, "/dev/ublk-clone/") != n {
			return fmt.Errorf("%s", list)
		}
		return nil
	})
	answers := strings.TrimSpace(g.run("bash", "-c", "/host"+agentProgram(g.T)+" ask /run/ublk-clone/*.sock"))
	g.Logf("microseconds to an answer:\n%s", answers)
	if got := strings.Count(answers, "\n") + 1; got != n {
		g.Errorf("%d daemons have answered, not %d", got, n)
	}
	for line := range strings.Lines(answers) {
		var best, worst int64
		if _, err := fmt.Sscan(line, &best, &worst); err != nil || best >= socketLimit.Microseconds() {
			g.Errorf("an answer took %s (%v)", line, err)
		}
	}
	g.Logf("memory: %s", strings.ReplaceAll(g.sh(`grep -h VmRSS /proc/[0-9]*/status | sort -k2n | tail -1; free -m | sed -n 2p`), "\n", "; "))
}
