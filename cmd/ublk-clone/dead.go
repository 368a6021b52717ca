package main

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// deadLimit is how long the driver may take to delete a device without server.
const deadLimit = 10 * time.Second

// removeDead deletes the block device that a dead daemon has left, if there is
// one and it bears the mark of the clone.
func removeDead(def *definition) error {
	id, err := def.deviceID()
	if err != nil {
		return nil // it never had one
	}
	control, err := ublk.OpenControl()
	if errors.Is(err, ublk.ErrNoDriver) {
		return nil
	}
	if err == nil {
		err = errors.Join(removeMarked(control, id, def.Mark), control.Close())
	}
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "delete", Object: def.Device, Cause: err}
	}
	return nil
}

// removeMarked leaves alone a device of that number that is somebody else's.
func removeMarked(control *ublk.Control, id int, mark uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), deadLimit)
	defer cancel()
	info, err := control.GetDevInfo(ctx, id)
	if err == nil && info.Private == mark {
		// Whoever has it open keeps its number in use, and need not be waited for: all it gets is errors.
		err = errors.Join(control.StopDev(ctx, id), control.DelDevAsync(ctx, id))
	}
	if errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}
