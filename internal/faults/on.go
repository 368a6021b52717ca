//go:build faults

package faults

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/file"
)

// faultEnv is the number of the step, from 1, behind which a start fails; after "die" the daemon is
// killed there.
const faultEnv = "UBLK_CLONE_FAULT"

// Start makes step k of a start go wrong, after it was done.
func Start(k int) error {
	file.Passed("start "+strconv.Itoa(k), "")
	step, dies := strings.CutPrefix(os.Getenv(faultEnv), "die ")
	if step != strconv.Itoa(k) {
		return nil
	}
	if dies {
		die()
	}
	return fmt.Errorf("fault behind step %d, as %s asks", k, faultEnv)
}

// die ends the process as nothing can prevent.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// finishEnv is where a finish goes wrong: "die N" kills the daemon behind step N of
// internal/engine/finish.go, "fail N M" makes these steps fail, each once.
const finishEnv = "UBLK_CLONE_FINISH_FAULT"

// exchangeEnv is the same of an exchange of direct extents (internal/direct).
const exchangeEnv = "UBLK_CLONE_EXCHANGE_FAULT"

var failed sync.Map

// Finish is called behind step k of a finish.
func Finish(k int) error {
	file.Passed("finish "+strconv.Itoa(k), "")
	return behind(finishEnv, k)
}

// Exchange is called behind step k of an exchange. Nothing here touches a file: the layer may be
// suspended.
func Exchange(k int) error { return behind(exchangeEnv, k) }

// behind goes wrong if env asks for that.
func behind(env string, k int) error {
	words := strings.Fields(os.Getenv(env))
	if len(words) < 2 || !slices.Contains(words[1:], strconv.Itoa(k)) {
		return nil
	}
	if words[0] == "die" {
		die()
	}
	if _, before := failed.LoadOrStore(env+strconv.Itoa(k), true); before {
		return nil
	}
	return fmt.Errorf("fault behind step %d, as %s asks", k, env)
}

// deadlyEnv is a byte of the device: a request that touches it kills the daemon.
const deadlyEnv = "UBLK_CLONE_DEADLY"

var deadlyByte = func() int64 {
	off, err := strconv.ParseInt(os.Getenv(deadlyEnv), 10, 64)
	if err != nil {
		return -1
	}
	return off
}()

// Request is asked of every request, by its place in bytes.
func Request(off, length int64) {
	if off <= deadlyByte && deadlyByte < off+length {
		die()
	}
}
