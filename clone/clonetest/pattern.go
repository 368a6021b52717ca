package clonetest

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
)

const sectorBytes = fakedisk.SectorBytes

// A value is the content of a sector: zeros, or the sector's number and the value, over and over.
type value uint64

// The values that no operation of a client writes.
const (
	valueZeros   value = 0
	valueSource  value = 1
	valueOldDest value = 2 // what the destination held before: never to be seen (I2)
	firstValue   value = 16
)

func (v value) String() string {
	switch v {
	case valueZeros:
		return "zeros"
	case valueSource:
		return "the source's"
	case valueOldDest:
		return "the destination's old content"
	}
	return fmt.Sprintf("#%d", uint64(v))
}

// fill lays value v over buf, which begins at sector.
func fill(buf []byte, sector int64, v value) {
	if v == valueZeros {
		clear(buf)
		return
	}
	for ; len(buf) > 0; buf, sector = buf[sectorBytes:], sector+1 {
		binary.LittleEndian.PutUint64(buf, uint64(sector))
		binary.LittleEndian.PutUint64(buf[8:], uint64(v))
		for n := 16; n < sectorBytes; n *= 2 {
			copy(buf[n:sectorBytes], buf[:n])
		}
	}
}

// spoil overwrites buf with what no operation writes, so that a READ which leaves bytes out is
// seen.
func spoil(buf []byte) {
	for len(buf) > 0 {
		buf = buf[copy(buf, spoiled):]
	}
}

var spoiled = bytes.Repeat([]byte{0xa5}, 4096)

var zeroSector [sectorBytes]byte

// decode tells the value of a sector's content, or what is wrong with it.
func decode(buf []byte, sector int64) (value, error) {
	buf = buf[:sectorBytes]
	if bytes.Equal(buf, zeroSector[:]) {
		return valueZeros, nil
	}
	if !bytes.Equal(buf[:sectorBytes-16], buf[16:]) {
		return 0, fmt.Errorf("no pattern: begins with % x", buf[:16])
	}
	from, v := int64(binary.LittleEndian.Uint64(buf)), value(binary.LittleEndian.Uint64(buf[8:]))
	if from != sector {
		return 0, fmt.Errorf("the content of sector %d (value %v)", from, v)
	}
	return v, nil
}
