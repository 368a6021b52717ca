package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n got\n%s\nwant\n%s", name, got, want)
	}
}

func sampleClones() []control.Status {
	left := int64(24*60 + 20)
	return []control.Status{
		{
			Identity:  control.Identity{Name: "pgdata", UUID: "7c0ffee0-0000-4000-8000-000000000001", Device: "/dev/ublkb0", Path: "/dev/ublk-clone/pgdata", DMName: "pg", DMDevice: "/dev/mapper/pg", PID: 4711},
			Condition: control.Condition{State: control.StateHydrating, Reason: "copying in the background.", Mode: "rw", FinishWaits: "everything to be hydrated"},
			Devices:   control.Devices{Source: "/dev/sdb", Dest: "/dev/nvme1n1", Metadata: "/var/lib/pg.meta", Size: 500 << 30, RegionSize: 4096},
			Progress: control.Progress{
				Bytes:   control.ByteCounts{Hydrated: 231404830720, Copied: 200 << 30, Written: 15 << 30, Discarded: 231404830720 - 215<<30, Remaining: 500<<30 - 231404830720},
				Regions: control.Regions{Hydrated: 56495320, Total: 131072000, Hydrating: 512}, Rate: 212 << 20, LastRate: 212 << 20, ETA: &left,
				BadRanges: []control.BadRange{}, ActiveSecs: 1000, Starts: 1,
			},
			Settings: definition.Settings{Hydration: true, ReadThrough: true, FinishAuto: true, MinRate: 1 << 20, Threshold: 1024, Batch: 256, Retries: 6}, MetadataBlocks: control.BlockCounts{Used: 40, Total: 8200},
		},
		{
			Identity: control.Identity{Name: "root", UUID: "3f1c9a00-0000-4000-8000-000000000002", Device: "/dev/ublkb1", PID: 4712},
			Condition: control.Condition{
				State: control.StateStalled, Reason: "6 reads of the source failed (Input/output error at 7.6 GiB). The device keeps serving what is hydrated; reads of the other 8.3 % fail with EIO.",
				Action: "Bring /dev/nbd0 back, then `ublk-clone resume root`. No write is at risk.", Mode: "rw",
			},
			Devices: control.Devices{Source: "/dev/nbd0", Dest: "/dev/vdb", Metadata: "/var/lib/root.meta", Size: 20 << 30, RegionSize: 64 << 10},
			Progress: control.Progress{
				Bytes:   control.ByteCounts{Hydrated: 19692493635, Copied: 9771050598, Written: 2147483648, Discarded: 7773959389, Remaining: 1782342845},
				Regions: control.Regions{Hydrated: 300483, Total: 327680}, LastRate: 88 << 20,
				BadRanges: []control.BadRange{{Offset: 8160437862, Length: 65536, Attempts: 6}}, ActiveSecs: 208, Starts: 2,
			},
			Settings: definition.Settings{Hydration: false, DiscardPassdown: true, Rate: 50 << 20, Threshold: 64, Batch: 16, Retries: 3}, LastEvent: 7, MetadataBlocks: control.BlockCounts{Used: 3, Total: 24},
			Warnings: []string{"the source /dev/nbd0 is not locked (--source-shared): nobody may mount or write it"},
		},
	}
}

func TestGoldenOutput(t *testing.T) {
	clones := sampleClones()
	var b bytes.Buffer
	check := func(name string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.Bytes())
		b.Reset()
	}
	check("table.txt", writeTable(&b, clones))
	check("details.txt", writeDetails(&b, &clones[1], false))
	check("details-bytes.txt", writeDetails(&b, &clones[0], true))
	check("dm.txt", writeDM(&b, &clones[0]))
	check("dm-nohydration.txt", writeDM(&b, &clones[1]))
	clones[1].Mode = "Fail"
	check("dm-fail.txt", writeDM(&b, &clones[1]))
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	check("status.json", enc.Encode(report{Schema: control.Schema, Clones: clones}))
}

func TestHundredPercentMeansAll(t *testing.T) {
	s := control.Status{Condition: control.Condition{State: control.StateHydrating}, Devices: control.Devices{Size: 1 << 40}}
	s.Bytes = control.ByteCounts{Hydrated: 1<<40 - 4096, Remaining: 4096}
	if got := s.DoneText(""); got != "99.9%" {
		t.Errorf("all but 4096 bytes: %s", got)
	}
	s.Bytes = control.ByteCounts{Hydrated: 1 << 40}
	if got := s.DoneText(""); got != "100.0%" {
		t.Errorf("all: %s", got)
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 999 * time.Millisecond: "0s", 59 * time.Second: "59s", 208 * time.Second: "3m28s", time.Hour: "1h",
		time.Hour + time.Second: "1h", 125 * time.Minute: "2h5m", 76 * time.Hour: "3d4h",
	} {
		if got := text.Duration(d); got != want {
			t.Errorf("duration(%s) = %s, want %s", d, got, want)
		}
	}
}
