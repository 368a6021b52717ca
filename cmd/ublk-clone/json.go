package main

import (
	"encoding/json"
	"io"

	"github.com/ublk-clone/ublk-clone/internal/control"
)

// encodeLine prints v as one line of JSON.
func encodeLine(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }

// encodeJSON prints v as JSON for people and programs.
func encodeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// report is what `-o json` prints.
type report struct {
	Schema string           `json:"schema"`
	Clones []control.Status `json:"clones"`
}
