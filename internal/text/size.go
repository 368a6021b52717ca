package text

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// units of sizes on the command line, in bytes. A bare number is bytes. Only
// these spellings: what "KB" or "k" means differs from program to program.
var units = map[string]int64{
	"": 1, "s": 512,
	"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
}

const unitNames = "K M G T or KiB MiB GiB TiB (1024), kB MB GB TB (1000), s (512-byte sectors), none (bytes)"

// ParseSize reads a size in bytes. Fractions are taken where they are a whole
// number of bytes: 1.5G, not 0.3K.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "sKMGTkiB")
	unit, known := units[s[len(digits):]]
	if !known {
		return 0, fmt.Errorf("size %q: unknown unit; units are %s", s, unitNames)
	}
	if digits == "" || strings.Trim(digits, "0123456789.") != "" {
		return 0, fmt.Errorf("size %q: not a number with a unit", s)
	}
	n, ok := new(big.Rat).SetString(digits)
	if !ok {
		return 0, fmt.Errorf("size %q: not a number with a unit", s)
	}
	n.Mul(n, new(big.Rat).SetInt64(unit))
	if !n.IsInt() {
		return 0, fmt.Errorf("size %q: not a whole number of bytes", s)
	}
	if !n.Num().IsInt64() {
		return 0, fmt.Errorf("size %q: too large", s)
	}
	return n.Num().Int64(), nil
}

var iec = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// Size prints a size in bytes with three digits: 18.3 GiB.
func Size(n int64) string {
	v, unit := float64(n), 0
	for math.Abs(v) >= 999.5 && unit < len(iec)-1 {
		v, unit = v/1024, unit+1
	}
	return threeDigits(v) + " " + iec[unit]
}

// ExactSize prints a size in bytes with the largest unit that divides it: 64KiB,
// 4097. ParseSize reads it.
func ExactSize(n int64) string {
	unit := 0
	for n != 0 && n%1024 == 0 && unit < 4 { // TiB is the largest that ParseSize knows
		n, unit = n/1024, unit+1
	}
	if unit == 0 {
		return strconv.FormatInt(n, 10)
	}
	return strconv.FormatInt(n, 10) + iec[unit]
}

// threeDigits prints v below 1000 without trailing zeros.
func threeDigits(v float64) string {
	decimals := 2
	for _, limit := range []float64{9.995, 99.95} {
		if math.Abs(v) >= limit {
			decimals--
		}
	}
	if math.Abs(v) < 0.9995 {
		decimals = 3
	}
	s := strconv.FormatFloat(v, 'f', decimals, 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}
