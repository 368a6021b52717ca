package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// fromTable is what `add x --table LINE` starts.
func fromTable(line string) (definition.Start, error) {
	var st definition.Start
	p := &program{}
	app := newApp(p)
	app.Command("add").Action = func(c *cli.Context) (err error) {
		st, err = startFrom(c)
		return err
	}
	err := app.Run([]string{"ublk-clone", "add", "--table", line, "x"})
	return st, err
}

func TestTable(t *testing.T) {
	type want struct {
		size, region int64
		settings     string
	}
	for line, w := range map[string]want{
		"0 1048576 clone /m /d /s 8":                                                          {512 << 20, 4096, ""},
		"  0\t1048576  clone /m /d /s 8\n":                                                    {512 << 20, 4096, ""},
		"0 8 clone /m /d /s 2097152":                                                          {4096, 1 << 30, ""},
		"0 8 clone /m /d /s 8 0":                                                              {4096, 4096, ""},
		"0 8 clone /m /d /s 8 0 0":                                                            {4096, 4096, ""},
		"0 8 clone /m /d /s 8 1 no_hydration":                                                 {4096, 4096, "hydration=off"},
		"0 8 clone /m /d /s 8 2 No_Hydration NO_DISCARD_PASSDOWN":                             {4096, 4096, "discard-passdown=off hydration=off"},
		"0 8 clone /m /d /s 8 0 2 hydration_threshold 0":                                      {4096, 4096, "threshold=0"},
		"0 8 clone /m /d /s 8 0 4 hydration_batch_size 256 hydration_threshold 4294967295":    {4096, 4096, "threshold=4294967295 batch=256"},
		"0 8 clone /m /d /s 8 1 no_hydration 4 hydration_threshold 1 hydration_threshold 007": {4096, 4096, "threshold=7 hydration=off"},
	} {
		st, err := fromTable(line)
		def := st.Definition
		got := want{def.Size, def.RegionSize, def.Settings.String()}
		if err != nil || got != w || def.Source != "/s" || def.Dest != "/d" || def.Metadata != "/m" {
			t.Errorf("%q: %+v, %v, want %+v", line, def, err, w)
		}
		if given := strings.Join(strings.Fields(line), " "); def.AsTable() != given {
			t.Errorf("%q is printed as %q", line, def.AsTable())
		}
	}
}

func TestTableRefused(t *testing.T) {
	const good = "0 8 clone /m /d /s"
	for line, says := range map[string]string{
		"":                                     "word 1, the start, is missing",
		"8 8 clone /m /d /s 8":                 `word 1, the start "8": it must be 0`,
		"0":                                    "word 2, the length, is missing",
		"0 0 clone /m /d /s 8":                 `word 2, the length "0": it must be a number from 1`,
		"0 +8 clone /m /d /s 8":                `word 2, the length "+8"`,
		"0 18014398509481984 clone /m /d /s 8": `word 2, the length`, // 2^63 bytes
		"0 8 linear /m /d /s 8":                `word 3, the target "linear": it must be clone`,
		"0 8 clone":                            "word 4, the metadata device, is missing",
		"0 8 clone /m /d":                      "word 6, the source device, is missing",
		good:                                   "word 7, the region size, is missing",
		good + " 0":                            `word 7, the region size "0": it must be a number from 8 to 2097152`,
		good + " 4":                            `word 7, the region size "4"`,
		good + " 9":                            `word 7, the region size "9": it must be a power of two`,
		good + " 4194304":                      `word 7, the region size "4194304"`,
		good + " 4KiB":                         `word 7, the region size "4KiB"`,
		good + " 8 3 no_hydration no_hydration no_hydration":      `word 8, the number of features "3": it must be a number from 0 to 2`,
		good + " 8 no_hydration":                                  `word 8, the number of features "no_hydration"`,
		good + " 8 1":                                             "word 9, the feature, is missing",
		good + " 8 1 hydration":                                   `word 9, the feature "hydration": it must be no_hydration or no_discard_passdown`,
		good + " 8 0 1 hydration_threshold":                       `word 9, the number of core argument words "1": it counts keys and values`,
		good + " 8 0 6":                                           `word 9, the number of core argument words "6": it must be a number from 0 to 4`,
		good + " 8 0 2 hydration_threshold":                       "word 11, the hydration_threshold, is missing",
		good + " 8 0 2 hydration_treshold 1":                      `word 10, the core argument "hydration_treshold"`,
		good + " 8 0 2 hydration_batch_size 0":                    `word 11, the hydration_batch_size "0": it must be a number from 1`,
		good + " 8 0 2 hydration_threshold 4294967296":            `word 11, the hydration_threshold "4294967296"`,
		good + " 8 0 2 hydration_threshold 1 more":                `word 12, the word "more": nothing may follow`,
		good + ` 8 \`:                                             "nothing follows the backslash",
		"0 8 clone 999999:7 /d /s 8":                              "999999:7",
		"0 8 clone /m /d /s 8 1 no_hydration no_discard_passdown": `word 10, the number of core argument words "no_discard_passdown"`,
	} {
		code := exit.Usage
		if strings.Contains(says, ":7") {
			code = exit.Metadata
		}
		_, err := fromTable(line)
		if exit.Code(err) != code || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, exit code %d, want %d saying %q", line, err, exit.Code(err), code, says)
		}
		if code == exit.Usage && !strings.Contains(exit.Next(err), definition.TableForm) {
			t.Errorf("%q: next %q", line, exit.Next(err))
		}
	}
}

// A device number is the device, and the table keeps the number.
func TestTableWithDeviceNumbers(t *testing.T) {
	found, err := filepath.Glob("/sys/dev/block/*:*")
	if err != nil || len(found) == 0 {
		t.Fatalf("no block device in sysfs, which the test needs: %v", err)
	}
	number := filepath.Base(found[0])
	line := fmt.Sprintf("0 8 clone /m %s /s 8", number)
	st, err := fromTable(line)
	def := st.Definition
	if err != nil || !strings.HasPrefix(def.Dest, "/dev/") || def.AsTable() != line {
		t.Errorf("%q: destination %q, printed as %q, %v", line, def.Dest, def.AsTable(), err)
	}
	if _, err := os.Stat("/sys/class/block/" + filepath.Base(def.Dest)); err != nil {
		t.Error(err)
	}
}

// A clone that was added with flags has a line too, which says the same again.
func TestDefinitionAsTable(t *testing.T) {
	off, on, threshold, batch := false, true, uint64(7), uint64(3)
	parts := definition.Definition{Name: "x", Source: "/s", Dest: "/d d", Metadata: `/m\`, Size: 4096 * 3, RegionSize: 8192}
	for _, c := range []struct {
		settings definition.Change
		want     string
	}{
		{definition.Change{}, ""},
		{definition.Change{Hydration: &on, DiscardPassdown: &on}, ""},
		{definition.Change{Hydration: &off}, " 1 no_hydration"},
		{definition.Change{Hydration: &off, DiscardPassdown: &off}, " 2 no_hydration no_discard_passdown"},
		{definition.Change{Threshold: &threshold}, " 0 2 hydration_threshold 7"},
		{definition.Change{DiscardPassdown: &off, Threshold: &threshold, Batch: &batch}, " 1 no_discard_passdown 4 hydration_threshold 7 hydration_batch_size 3"},
	} {
		def := parts
		def.Settings = c.settings
		line := def.AsTable()
		if want := `0 24 clone /m\\ /d\ d /s 16` + c.want; line != want {
			t.Errorf("%+v\n got %q\nwant %q", c.settings, line, want)
		}
		st, err := fromTable(line)
		again := st.Definition
		if err != nil || again.Source != def.Source || again.Dest != def.Dest || again.Metadata != def.Metadata || again.AsTable() != line ||
			again.Size != def.Size || again.RegionSize != def.RegionSize {
			t.Errorf("%q gives %+v, %v", line, again, err)
		}
	}
}

// Whatever is read is printed so that it is read the same, and errors name a word.
func FuzzParseTable(f *testing.F) {
	f.Add("0 1048576 clone /m /d /s 8 1 no_hydration 2 hydration_threshold 256")
	f.Add("0 8 clone 254:3 /d\\ d /s\\\\ 16 0")
	f.Add("0 8 clone \\")
	f.Add("")
	f.Fuzz(func(t *testing.T, line string) {
		got, err := definition.ParseTable(line)
		if err != nil {
			if len(err.Error()) > len(line)*4+200 {
				t.Errorf("%q: %v", line, err)
			}
			return
		}
		if got.Size <= 0 || got.Size%definition.SectorSize != 0 || !definition.RegionSizePossible(got.RegionSize) {
			t.Errorf("%q: %+v", line, got)
		}
		again, err := definition.ParseTable(got.String())
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%q\n is %+v\nthen %+v, %v", line, got, again, err)
		}
	})
}
