package ublk

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/guard"
)

const (
	limitsTime  = time.Second // for spareTag
	leastTags   = 4           // the least nr_requests (BLKDEV_MIN_RQ, linux/blkdev.h)
	requestTime = 1000        // milliseconds after which the block layer asks for a request
)

// spareTag sees to it that the death of this process, or its leaving, is noticed at once by drivers
// before 6.15. Those learn of it from a tag that waits for a request, in each queue; where all tags
// are at work they learn of it when a request's time is up, after 30 s, and a recovery has to wait
// for that (ublk_uring_cmd_cancel_fn and ublk_timeout, ublk_drv.c, 6.12; 31 s measured). So one tag
// of each queue is left unused, as far as the block layer goes that low, and requests' time is
// short: a driver whose server lives gives it again and again.
//
// Both are for speed only, and anybody may change them: failures do not matter. Setting them waits
// for the requests under way, and so is not done again by a recovery.
func (d *kernelDevice) spareTag() {
	if !d.info.Features.UserRecovery || d.info.Features.Quiesce {
		return
	}
	done := make(chan struct{})
	guard.Go("limits of the queues", func() {
		defer close(done)
		d.lower("io_timeout", requestTime)
		if d.info.Depth > leastTags {
			d.lower("nr_requests", d.info.Depth-1)
		}
	})
	select {
	case <-done:
	case <-time.After(limitsTime):
	}
}

// lower sets a limit of the block device's queue to value, if it is higher.
func (d *kernelDevice) lower(limit string, value int) {
	path := fmt.Sprintf("/sys/block/ublkb%d/queue/%s", d.info.ID, limit)
	text, err := os.ReadFile(path)
	if err != nil {
		return
	}
	if old, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && old > value {
		_ = os.WriteFile(path, strconv.AppendInt(nil, int64(value), 10), 0)
	}
}
