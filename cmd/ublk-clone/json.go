package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// encodeLine prints v as one line of JSON.
func encodeLine(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }

// encodeJSON prints v as JSON for people and programs.
func encodeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// decodeKnown reads one JSON value and refuses fields that are not known and
// whatever follows the value.
func decodeKnown(b []byte, v any) error {
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
