//go:build faults

package main

import (
	"fmt"
	"os"
	"strconv"
)

// faultEnv is the number of the step, from 1, behind which a start fails.
const faultEnv = "UBLK_CLONE_FAULT"

// fault makes step k of a start fail, after it was done.
func fault(k int) error {
	if os.Getenv(faultEnv) == strconv.Itoa(k) {
		return fmt.Errorf("fault behind step %d, as %s asks", k, faultEnv)
	}
	return nil
}
