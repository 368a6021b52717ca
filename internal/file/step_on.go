//go:build faults

package file

import (
	"fmt"
	"os"
	"os/exec"
)

// StepEnv names a program that runs behind every step, with the step and the path as arguments. A
// test copies disks in it, to see what a power cut at this moment would leave.
const StepEnv = "UBLK_CLONE_AT_STEP"

func passed(step, path string) { Passed(step, path) }

// Passed runs the program that StepEnv names. Whoever has steps of another kind may call it too.
func Passed(step, path string) {
	program := os.Getenv(StepEnv)
	if program == "" {
		return
	}
	if out, err := exec.Command(program, step, path).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s %s %s: %v: %s\n", program, step, path, err, out)
	}
}
