package blockdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// probeLimit bounds blkid, which reads a few places of the device.
const probeLimit = 10 * time.Second

// blkid's exit codes (blkid(8)).
const (
	blkidNothing   = 2
	blkidAmbiguous = 8
)

// Signature refuses, with exit code 14 unless force is set, a destination that
// carries something blkid knows: a file system, LVM, LUKS, a partition table.
// It is for a new clone only; a destination that is partly hydrated carries the
// source's. Where the probe itself fails the destination counts as used.
func (d *Device) Signature(force bool) error {
	found := d.Carries()
	if found == "" {
		return nil
	}
	if force {
		d.warn("the destination %s is overwritten (--force): %s", d.path, found)
		return nil
	}
	return d.refuse("overwrite", errors.New(found),
		"If nothing on it is needed, wipe it with `wipefs -a`, or use --force. Check that source and destination are not mixed up.")
}

// Carries says what blkid finds on the device, "" for nothing, as on a file that Open has made.
func (d *Device) Carries() string {
	if d.created {
		return ""
	}
	found, err := probe(d.path, probeLimit)
	if err != nil {
		return "it cannot be told what it carries: " + err.Error()
	}
	return found
}

// probe says what blkid finds on the device at path, "" for nothing. It runs without descriptors of
// ours (os/exec passes none on and ours are close-on-exec), and a blkid that hangs is left behind
// when the limit has passed: it must not hold this process.
func probe(path string, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "blkid", "-p", "-o", "export", "--", path)
	var out bytes.Buffer
	cmd.Stdout = &out
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start blkid of util-linux: %w", err)
	}
	done := make(chan error, 1)
	guard.Go("blkid", func() { done <- cmd.Wait() })
	select {
	case err := <-done:
		return probed(out.String(), cmd.ProcessState.ExitCode(), err)
	case <-ctx.Done():
		return "", fmt.Errorf("blkid took longer than %s", limit)
	}
}

// probed reads blkid's answer.
func probed(out string, code int, err error) (string, error) {
	switch {
	case err == nil && strings.TrimSpace(out) == "":
		return "", errors.New("blkid printed nothing: it is not the one from util-linux")
	case err == nil:
		if found := describe(out); found != "" {
			return "it carries " + found, nil
		}
		return "", nil
	case code == blkidNothing:
		return "", nil
	case code == blkidAmbiguous:
		return "it carries several signatures", nil
	}
	return "", fmt.Errorf("run blkid: %w", err)
}

// describe puts the lines of `blkid -o export` in words, "" for none that are of what is on the
// device: of a partition they say what the table around it has on it, too.
func describe(out string) string {
	value := map[string]string{}
	for line := range strings.Lines(out) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		if k != "" && k != "DEVNAME" && !strings.HasPrefix(k, "PART_ENTRY_") {
			value[k] = v
		}
	}
	if len(value) == 0 {
		return ""
	}
	var parts []string
	if v := value["TYPE"]; v != "" {
		parts = append(parts, v)
	}
	if v := value["PTTYPE"]; v != "" {
		parts = append(parts, v+" partition table")
	}
	parts = slices.DeleteFunc(append(parts, named("label", value["LABEL"]), named("uuid", value["UUID"])),
		func(s string) bool { return s == "" })
	if len(parts) == 0 {
		return "a signature"
	}
	return strings.Join(parts, ", ")
}

func named(what, v string) string {
	if v == "" {
		return ""
	}
	return what + " " + v
}
