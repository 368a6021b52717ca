package explain

import (
	"errors"
	"io/fs"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/metadata"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// Driver gives an error of package ublk its exit code.
func Driver(doing string, err error) error {
	if err == nil {
		return nil
	}
	e := &exit.Error{Code: exit.Other, Doing: doing, Cause: err}
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Code, e.Next = exit.Denied, "Run it as root; `ublk-clone doctor` says what else may be in the way."
	case errors.Is(err, ublk.ErrNoDriver), errors.Is(err, ublk.ErrNotSupported):
		e.Code, e.Next = exit.Feature, "`ublk-clone doctor` says what is missing, and how to get it."
	}
	return e
}

// Metadata gives an error of package metadata its exit code and the next step.
func Metadata(doing, path string, err error) error {
	e := &exit.Error{Code: exit.Metadata, Doing: doing + " the metadata", Object: path, Cause: err}
	switch {
	case errors.Is(err, metadata.ErrEmpty):
		e.Next = "Check the path; without --open new metadata is made."
	case errors.Is(err, metadata.ErrNotEmpty):
		e.Next = "Check the path. `wipefs -a` or --create --force make room, if nothing on it is needed."
	case errors.Is(err, metadata.ErrTooSmall):
		e.Next = "Use a larger device, larger regions, or a file, which grows by itself."
	case errors.Is(err, metadata.ErrDamaged):
		e.Next = "Nothing was written. Check the path; `ublk-clone metadata check` says what is damaged."
	case errors.Is(err, metadata.ErrVersion):
		e.Next = "Use the newer version of ublk-clone that made it."
	case errors.Is(err, metadata.ErrMismatch):
		e.Next = "Nothing was written. Check that source, destination and metadata belong together; `ublk-clone metadata dump` shows the pair."
	}
	return e
}

// LiveMap is of the live map.
func LiveMap(doing string, err error) error {
	e := &exit.Error{Code: exit.Metadata, Doing: doing + " the region map in memory, in", Object: livemap.Dir, Cause: err}
	if errors.Is(err, livemap.ErrVersion) {
		e.Next = "Nothing was written. Use the version of ublk-clone that served the clone last."
	}
	return e
}
