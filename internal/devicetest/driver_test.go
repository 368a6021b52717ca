//go:build device

package devicetest

import (
	"bytes"
	"os"
	"os/exec"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestDriverLoads checks the guest itself: its kernel has the driver, and the
// driver offers its control device.
func TestDriverLoads(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("kernel %s", bytes.TrimSpace(release))
	if out, err := exec.Command("modprobe", "ublk_drv").CombinedOutput(); err != nil {
		t.Fatalf("modprobe ublk_drv: %v: %s", err, out)
	}
	info, err := os.Stat("/dev/ublk-control")
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode()&os.ModeCharDevice == 0 {
		t.Fatalf("/dev/ublk-control is no character device: %v", info.Mode())
	}
}
