package ublk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const controlPath = "/dev/ublk-control"

// Control is the driver's control device. Its methods may be called from any goroutine. Each sends
// one command and ends at the latest with its context, or after 30 s if that has no deadline, with
// a TimeoutError; other commands go on beside one that hangs.
type Control struct {
	file   *os.File
	thread *controlThread
}

// OpenControl opens /dev/ublk-control. An error that is ErrNoDriver says which module is missing
// and how to get it.
func OpenControl() (*Control, error) {
	file, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if err != nil {
		return nil, explainOpen(err)
	}
	thread, err := startControlThread(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &Control{file: file, thread: thread}, nil
}

// explainOpen says what to do about err, from opening the control device.
func explainOpen(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open ublk control: %w (it takes root)", err)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open ublk control: %w", err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("read kernel release: %w", err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	_, loaded := os.Stat("/sys/module/ublk_drv")
	return fmt.Errorf("%w: %s does not exist: %s", ErrNoDriver, controlPath, DriverAdvice(release, loaded == nil, "/lib/modules"))
}

// DriverAdvice is how to get the driver on kernel release, whose modules are under modules.
func DriverAdvice(release string, loaded bool, modules string) string {
	if loaded {
		return "the module ublk_drv is loaded but there is no node: mount devtmpfs on /dev"
	}
	dep, err := os.ReadFile(filepath.Join(modules, release, "modules.dep"))
	if err == nil && strings.Contains(string(dep), "/ublk_drv.ko") {
		return "load the module: modprobe ublk_drv"
	}
	return fmt.Sprintf("kernel %s has no module ublk_drv (CONFIG_BLK_DEV_UBLK, Linux 6.5 or later): "+
		"Debian has it in linux-image-*-amd64 and -cloud-amd64 from 6.12, Ubuntu in linux-modules-extra-%s", release, release)
}

// Close ends the control thread. Commands outstanding return ErrClosed.
func (c *Control) Close() error {
	c.thread.close()
	return c.file.Close()
}

// do sends cmd for device id (-1: none) and waits for its result.
func (c *Control) do(ctx context.Context, id int, cmd *command) error {
	begin := time.Now()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, commandTimeout)
		defer cancel()
	}
	cmd.done = make(chan int32, 1)
	cmd.head.devID = uint32(int32(id))
	c.thread.post(cmd)
	select {
	case res := <-cmd.done:
		if res < 0 {
			return &CommandError{Command: cmd.name, Device: id, Errno: unix.Errno(-res)}
		}
		return nil
	case <-c.thread.ended:
		return c.thread.err
	case <-ctx.Done():
		c.thread.abandon(cmd)
		return &TimeoutError{Command: cmd.name, Device: id, After: time.Since(begin), cause: ctx.Err()}
	}
}

// simple is a command for a device without data.
func (c *Control) simple(ctx context.Context, id int, name string, op uint32, arg uint64) error {
	return c.do(ctx, id, &command{name: name, op: op, head: ctrlCmd{queueID: noQueue, data: arg}})
}

// withData is a command whose data are a kernel struct, read and written.
func withData[T any](ctx context.Context, c *Control, id int, name string, op uint32, v *T) error {
	cmd := &command{name: name, op: op, head: ctrlCmd{queueID: noQueue}, data: slices.Clone(bytesOf(v))}
	if err := c.do(ctx, id, cmd); err != nil {
		return err
	}
	copy(bytesOf(v), cmd.data)
	return nil
}

// Features is what the driver offers. A driver before 6.5 cannot say and is a FeatureError.
func (c *Control) Features(ctx context.Context) (Features, error) {
	var bits uint64
	err := withData(ctx, c, -1, "GET_FEATURES", cmdGetFeatures, &bits)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return Features{}, &FeatureError{Name: "UBLK_U_CMD_GET_FEATURES", Since: "6.5"}
	}
	return decodeFeatures(bits), err
}

// AddDev adds a device; want says its ID (or AnyID), Queues, Depth, MaxIO, Features.Bits and
// Private. What the driver made of it is returned: fewer queues, features that it does not know
// left out.
func (c *Control) AddDev(ctx context.Context, want Info) (Info, error) {
	k := devInfo{
		nrHWQueues:    uint16(want.Queues),
		queueDepth:    uint16(want.Depth),
		maxIOBufBytes: uint32(want.MaxIO),
		devID:         uint32(int32(want.ID)),
		ublksrvPID:    int32(os.Getpid()),
		flags:         want.Features.Bits,
		ublksrvFlags:  want.Private,
	}
	if err := withData(ctx, c, want.ID, "ADD_DEV", cmdAddDev, &k); err != nil {
		return Info{}, err
	}
	return k.decode(), nil
}

// GetDevInfo describes device id, whoever made it. One that does not exist is ENODEV.
func (c *Control) GetDevInfo(ctx context.Context, id int) (Info, error) {
	var k devInfo
	// The form of 6.3, which also tells of devices of other users: before its place for the answer
	// it has the path of ublkcN, which the driver looks up.
	path := CharPath(id)
	cmd := &command{
		name: "GET_DEV_INFO2", op: cmdGetDevInfo2,
		head: ctrlCmd{queueID: noQueue, devPathLen: uint16(len(path))},
		data: append([]byte(path), bytesOf(&k)...),
	}
	err := c.do(ctx, id, cmd)
	copy(bytesOf(&k), cmd.data[len(path):])
	return k.decode(), err
}

// SetParams gives device id its parameters, before it is started.
func (c *Control) SetParams(ctx context.Context, id int, p Params) error {
	if err := p.Validate(); err != nil {
		return err
	}
	k := p.encode()
	return withData(ctx, c, id, "SET_PARAMS", cmdSetParams, &k)
}

// GetParams returns the parameters of device id.
func (c *Control) GetParams(ctx context.Context, id int) (Params, error) {
	k := kernelParams{len: kernelParamsSize}
	err := withData(ctx, c, id, "GET_PARAMS", cmdGetParams, &k)
	return k.decode(), err
}

// StartDev makes /dev/ublkbN appear. It returns when all tags of all queues are fetched, and on
// some kernels after reads of the device, so that no queue's thread may call it.
func (c *Control) StartDev(ctx context.Context, id int) error {
	return c.simple(ctx, id, "START_DEV", cmdStartDev, uint64(os.Getpid()))
}

// StopDev removes /dev/ublkbN. The driver first lets the queues answer what is outstanding.
func (c *Control) StopDev(ctx context.Context, id int) error {
	return c.simple(ctx, id, "STOP_DEV", cmdStopDev, 0)
}

// TryStop is StopDev if nobody has the block device open, and EBUSY otherwise. Before 7.0 it is a
// FeatureError.
func (c *Control) TryStop(ctx context.Context, id int) error {
	err := c.simple(ctx, id, "TRY_STOP_DEV", cmdTryStopDev, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return &FeatureError{Name: "UBLK_F_SAFE_STOP_DEV", Since: "7.0"}
	}
	return err
}

// DelDev deletes device id, and returns when its last user has let go: openers of ublkbN and of
// ublkcN, their mappings, fixed files.
func (c *Control) DelDev(ctx context.Context, id int) error {
	return c.simple(ctx, id, "DEL_DEV", cmdDelDev, 0)
}

// DelDevAsync deletes device id and returns at once; the id is free when its last user has let go
// (6.9).
func (c *Control) DelDevAsync(ctx context.Context, id int) error {
	err := c.simple(ctx, id, "DEL_DEV_ASYNC", cmdDelDevAsync, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return &FeatureError{Name: "UBLK_U_CMD_DEL_DEV_ASYNC", Since: "6.9"}
	}
	return err
}

// StartRecovery is the first step of taking device id over from a server that is dead. EBUSY: the
// dead server's ublkcN is not closed yet, or its requests are not back in the driver.
func (c *Control) StartRecovery(ctx context.Context, id int) error {
	return c.simple(ctx, id, "START_USER_RECOVERY", cmdStartRecovery, 0)
}

// EndRecovery is the last one: this process serves device id from now on. As StartDev it returns
// when all tags of all queues are fetched.
func (c *Control) EndRecovery(ctx context.Context, id int) error {
	return c.simple(ctx, id, "END_USER_RECOVERY", cmdEndRecovery, uint64(os.Getpid()))
}

// Quiesce keeps requests back in the driver from now on and gives up the tags that the server does
// not have at work; limit is how long the driver may wait for such a tag in each queue. If it fails
// the device may be left half-way: only closing ublkcN, and a recovery, bring it back. Before 6.16,
// and for a device that was not made with it, it is a FeatureError.
func (c *Control) Quiesce(ctx context.Context, id int, limit time.Duration) error {
	ms := min(max(limit.Milliseconds(), 1), math.MaxUint32) // 0 would be for ever
	err := c.simple(ctx, id, "QUIESCE_DEV", cmdQuiesceDev, uint64(ms))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return &FeatureError{Name: "UBLK_F_QUIESCE", Since: "6.16"}
	}
	return err
}

// QueueAffinity is the set of CPUs whose requests come to the queue.
func (c *Control) QueueAffinity(ctx context.Context, id, queue int) (unix.CPUSet, error) {
	var set unix.CPUSet
	cmd := &command{
		name: "GET_QUEUE_AFFINITY", op: cmdGetQueueAffinity,
		head: ctrlCmd{queueID: noQueue, data: uint64(queue)},
		data: make([]byte, len(bytesOf(&set))),
	}
	err := c.do(ctx, id, cmd)
	copy(bytesOf(&set), cmd.data)
	return set, err
}

// List returns the ids of all devices there are, in order, whoever serves them.
func List() ([]int, error) {
	entries, err := os.ReadDir("/sys/class/ublk-char")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list ublk devices: %w", err)
	}
	var ids []int
	for _, e := range entries {
		if id, err := strconv.Atoi(strings.TrimPrefix(e.Name(), "ublkc")); err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// ListDevices describes all devices there are, in the order of their ids, whoever serves them.
// Those that it could ask are returned also with an error.
func (c *Control) ListDevices(ctx context.Context) ([]Info, error) {
	ids, err := List()
	errs := []error{err}
	var infos []Info
	for _, id := range ids {
		info, err := c.GetDevInfo(ctx, id)
		switch {
		case err == nil:
			infos = append(infos, info)
		case !errors.Is(err, unix.ENODEV): // deleted meanwhile
			errs = append(errs, err)
		}
	}
	return infos, errors.Join(errs...)
}
