package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// DecodeKnown reads one JSON value and refuses fields that are not known and
// whatever follows the value.
func DecodeKnown(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the value")
	}
	return nil
}
