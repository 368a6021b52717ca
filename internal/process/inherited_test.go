package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// renewTestEnv has the test below be the process that renews itself.
const renewTestEnv = "UBLK_CLONE_TEST_RENEW"

// TestRenew: a process that starts itself once more keeps its number and its arguments, and nothing
// else of its caller.
func TestRenew(t *testing.T) {
	if os.Getenv(renewTestEnv) != "" {
		if err := Renew(); err != nil {
			t.Fatal(err)
		}
		tellOfItself()
		return
	}
	lock := filepath.Join(t.TempDir(), "lock")
	script := `exec 9>"$0"; umask 0; trap '' TSTP USR1; export BURDEN=1; echo pid=$$; exec nice -n 3 "$1" -test.run='^TestRenew$'`
	for _, unit := range []string{"", "/run/nowhere"} {
		cmd := exec.Command("sh", "-c", script, lock, os.Args[0])
		cmd.Env = append(os.Environ(), renewTestEnv+"=1", "NOTIFY_SOCKET="+unit)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		text := string(out)
		first, _, _ := strings.Cut(text, "\n")
		for _, want := range []string{first + " again", "Umask:\t0077", "SigBlk:\t0000000000000000", "environment: PATH="} {
			if !strings.Contains(text, want) {
				t.Errorf("unit %q: no %q in\n%s", unit, want, text)
			}
		}
		for _, bad := range []string{lock, "BURDEN"} {
			if strings.Contains(text, bad) {
				t.Errorf("unit %q: %q in\n%s", unit, bad, text)
			}
		}
		if notified := strings.Contains(text, "NOTIFY_SOCKET=/run/nowhere"); notified != (unit != "") {
			t.Errorf("unit %q: the manager's socket is there: %t", unit, notified)
		}
	}
}

func tellOfItself() {
	fmt.Printf("pid=%d again\n", os.Getpid())
	status, _ := os.ReadFile("/proc/self/status")
	fmt.Printf("%s\n", status)
	environ, _ := os.ReadFile("/proc/self/environ")
	fmt.Printf("environment: %s\n", strings.ReplaceAll(string(environ), "\x00", "\n"))
	found, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range found {
		to, _ := os.Readlink(fd)
		fmt.Println(fd, to)
	}
}
