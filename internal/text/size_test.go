package text

import (
	"math"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int64
	}{
		{"0", 0}, {"4096", 4096}, {"8s", 4096}, {"4K", 4096}, {"4KiB", 4096}, {"4kB", 4000},
		{"1M", 1 << 20}, {"1MB", 1e6}, {"1.5G", 3 << 29}, {"2TiB", 2 << 40}, {"2TB", 2e12},
		{"9223372036854775807", math.MaxInt64}, {"0.5K", 512}, {"007", 7},
	} {
		if got, err := ParseSize(c.in); err != nil || got != c.want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{
		"", "K", "-1", "+1", "1 K", "4k", "4KB", "4kiB", "4Ki", "1e3", "0x10", "1_000", "1/2", "0.3K",
		"9223372036854775808", "8388608T", "1KK", "Ks", "4B", "..", "1..2", "4KiBs",
	} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", in, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1K", "1.5GiB", "9s", "", "1e9", ".5T"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err == nil && (n < 0 || strings.ContainsAny(s, "eExX_/ -+")) {
			t.Errorf("parseSize(%q) = %d", s, n)
		}
	})
}

func TestFormatSize(t *testing.T) {
	for _, c := range []struct {
		in   int64
		want string
	}{
		{0, "0 B"}, {1, "1 B"}, {999, "999 B"}, {1000, "0.977 KiB"}, {1024, "1 KiB"}, {1536, "1.5 KiB"},
		{20 << 30, "20 GiB"}, {1825361101, "1.7 GiB"}, {19649475379, "18.3 GiB"}, {212 << 20, "212 MiB"},
		{1023 << 20, "0.999 GiB"}, {999<<20 + 600<<10, "0.976 GiB"}, {math.MaxInt64, "8 EiB"}, {10234, "9.99 KiB"}, {10239, "10 KiB"},
	} {
		if got := Size(c.in); got != c.want {
			t.Errorf("formatSize(%d) = %q, want %q", c.in, got, c.want)
		}
	}
}
