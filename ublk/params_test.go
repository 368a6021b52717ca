package ublk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParamsValidate(t *testing.T) {
	good := Params{Size: 1 << 30}
	with := func(change func(*Params)) Params {
		p := good
		change(&p)
		return p
	}
	for _, c := range []struct {
		p    Params
		want string // in the error; empty: valid
	}{
		{good, ""},
		{with(func(p *Params) { p.LogicalBlockSize, p.PhysicalBlockSize = 4096, 4096 }), ""},
		{with(func(p *Params) { p.Size = 512 }), ""},
		{with(func(p *Params) { p.Size = 0 }), "size 0"},
		{with(func(p *Params) { p.Size = -512 }), "size -512"},
		{with(func(p *Params) { p.Size = 1000 }), "size 1000"},
		{with(func(p *Params) { p.LogicalBlockSize, p.Size = 4096, 512*9 }), "size 4608"},
		{with(func(p *Params) { p.LogicalBlockSize = 256 }), "logical block size 256"},
		{with(func(p *Params) { p.LogicalBlockSize = 1536 }), "logical block size 1536"},
		{with(func(p *Params) { p.LogicalBlockSize = 8192 }), "logical block size 8192"},
		{with(func(p *Params) { p.LogicalBlockSize, p.PhysicalBlockSize = 4096, 512 }), "physical block size 512"},
		{with(func(p *Params) { p.IOMin = 3000 }), "smallest I/O 3000"},
		{with(func(p *Params) { p.IOOpt = 3000 }), "optimal I/O 3000"},
		{with(func(p *Params) { p.MaxIO = 2048 }), "largest I/O 2048"},
		{with(func(p *Params) { p.MaxIO = 70000 }), "largest I/O 70000"},
		{with(func(p *Params) { p.MaxIO = 64 << 20 }), "largest I/O 67108864"},
		{with(func(p *Params) { p.MaxIO = 32 << 20 }), ""},
		{with(func(p *Params) { p.DiscardGranularity = 1000 }), "discard granularity 1000"},
		{with(func(p *Params) { p.DiscardGranularity = 4 << 30 }), "discard granularity 4294967296"},
		{with(func(p *Params) { p.DiscardGranularity, p.MaxDiscard = 65536, 4096 }), "largest discard 4096"},
		{with(func(p *Params) { p.MaxWriteZeroes = -1 }), "largest write-zeroes -1"},
		{with(func(p *Params) { p.FUA = true }), "FUA"},
		{with(func(p *Params) { p.FUA, p.VolatileCache = true, true }), ""},
		{with(func(p *Params) { p.DMAAlignment = 100 }), "DMA alignment 100"},
		{with(func(p *Params) { p.DMAAlignment = 4096 }), "DMA alignment 4096"},
		{with(func(p *Params) { p.DMAAlignment = 512 }), ""},
	} {
		err := c.p.Validate()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%+v: %v", c.p, err)
		case c.want != "" && (!errors.Is(err, ErrParams) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%+v: error %v, want one with %q", c.p, err, c.want)
		}
	}
}

func TestParamsEncode(t *testing.T) {
	p := Params{
		Size: 1 << 40, LogicalBlockSize: 512, PhysicalBlockSize: 4096, IOMin: 4096, IOOpt: 65536, MaxIO: 1 << 20,
		DiscardGranularity: 65536, MaxDiscard: 1<<50 + 1, MaxWriteZeroes: 100000,
		VolatileCache: true, FUA: true, DMAAlignment: 512,
	}
	k := p.encode()
	want := kernelParams{
		len: 152, types: 1 | 2 | 16,
		basic: paramsBasic{
			attrs: 12, logicalBSShift: 9, physicalBSShift: 12, ioOptShift: 16, ioMinShift: 12,
			maxSectors: 2048, devSectors: 1 << 31,
		},
		discard: paramsDiscard{
			discardGranularity: 65536, maxDiscardSectors: 0xffffff80, maxWriteZeroesSectors: 128, maxDiscardSegments: 1,
		},
		dmaMask: 511,
	}
	if k != want {
		t.Errorf("encoded as\n%+v, want\n%+v", k, want)
	}
	back := k.decode()
	p.MaxDiscard, p.MaxWriteZeroes = 0xffffff80<<9, 65536
	if back != p {
		t.Errorf("decoded as\n%+v, want\n%+v", back, p)
	}
	plain := Params{Size: 4096}.encode()
	if plain.types != paramBasic || plain.basic.maxSectors != 1024 || plain.basic.ioOptShift != 0 {
		t.Errorf("without discard: %+v", plain)
	}
	if got, want := plain.decode(), (Params{Size: 4096}).withDefaults(); got != want {
		t.Errorf("decoded as\n%+v, want\n%+v", got, want)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{
		{Queues: 0, Depth: 1, Params: Params{Size: 512}},
		{Queues: 4097, Depth: 1, Params: Params{Size: 512}},
		{Queues: 1, Depth: 0, Params: Params{Size: 512}},
		{Queues: 1, Depth: 4097, Params: Params{Size: 512}},
		{Queues: 1, Depth: 1},
	} {
		if _, err := Create(nil, o); !errors.Is(err, ErrParams) {
			t.Errorf("%+v: %v, want ErrParams", o, err)
		}
	}
}

func TestFeatures(t *testing.T) {
	old, current := decodeFeatures(0x1fe), decodeFeatures(0x1fffff)
	if !old.UserCopy || old.AutoBufReg || old.NoAutoPartScan || old.SafeStop {
		t.Errorf("6.12: %+v", old)
	}
	if !current.AutoBufReg || !current.NoAutoPartScan || !current.SafeStop || !current.Quiesce {
		t.Errorf("7.3: %+v", current)
	}
	for _, c := range []struct {
		offered     uint64
		recoverable bool
		copied      bool
		want        uint64
	}{
		{0x1fe, false, false, 0x40}, {0x7fff, false, false, 0x8c0}, {0x1fffff, false, false, 0x408c0},
		{0x1fe, true, false, 0x58}, {0x7fff, true, false, 0x18d8}, {0x1fffff, true, false, 0x418d8},
		{0x1fffff, false, true, 0x40040}, {0x7fff, true, true, 0x1058},
	} {
		if got, err := requestFlags(decodeFeatures(c.offered), &Options{Recoverable: c.recoverable, Copy: c.copied}); got != c.want || err != nil {
			t.Errorf("of %#x (recoverable %v) are requested %#x, %v; want %#x", c.offered, c.recoverable, got, err, c.want)
		}
	}
	_, err := requestFlags(decodeFeatures(0x2), &Options{})
	var feature *FeatureError
	if !errors.As(err, &feature) || !errors.Is(err, ErrNotSupported) || feature.Since != "6.4" {
		t.Errorf("without encoded commands: %v", err)
	}
	for _, offered := range []uint64{0x40, 0x48, 0x50} {
		if _, err := requestFlags(decodeFeatures(offered), &Options{Recoverable: true}); !errors.As(err, &feature) || feature.Since != "6.1" {
			t.Errorf("recoverable of %#x: %v, want a FeatureError", offered, err)
		}
	}
	if err := missing(0x40040, 0x42); !errors.As(err, &feature) || feature.Since != "7.0" {
		t.Errorf("a flag that was dropped: %v", err)
	}
}

func TestDriverAdvice(t *testing.T) {
	modules := t.TempDir()
	dir := filepath.Join(modules, "6.12")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	dep := "kernel/drivers/block/null_blk/null_blk.ko.xz:\nkernel/drivers/block/ublk_drv.ko.xz:\n"
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(dep), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		release string
		loaded  bool
		want    string
	}{
		{"6.12", false, "modprobe ublk_drv"},
		{"6.12", true, "devtmpfs"},
		{"6.1", false, "kernel 6.1 has no module ublk_drv"},
	} {
		if got := DriverAdvice(c.release, c.loaded, modules); !strings.Contains(got, c.want) {
			t.Errorf("kernel %s, loaded %v: %q, want %q in it", c.release, c.loaded, got, c.want)
		}
	}
}
