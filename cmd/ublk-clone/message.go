package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// message is one of dm-clone's: its word and, for two of them, a number of
// regions.
type message struct {
	Word    string `json:"word"`
	Regions uint64 `json:"regions,omitempty"`
}

// dm-clone's words.
const (
	enableHydration    = "enable_hydration"
	disableHydration   = "disable_hydration"
	hydrationThreshold = "hydration_threshold"
	hydrationBatchSize = "hydration_batch_size"
)

const messageList = enableHydration + ", " + disableHydration + ", " + hydrationThreshold + " N, " + hydrationBatchSize + " N"

// parseMessage reads the words of `message NAME WORDS...`. A leading 0, the
// sector that `dmsetup message` asks for, is ignored.
func parseMessage(words []string) (message, error) {
	if len(words) > 1 && words[0] == "0" {
		words = words[1:]
	}
	if len(words) == 0 {
		return message{}, messageError(words, "no message")
	}
	m, args := message{Word: strings.ToLower(words[0])}, words[1:]
	switch m.Word {
	case enableHydration, disableHydration:
		if len(args) != 0 {
			return message{}, messageError(words, m.Word+" takes no argument")
		}
		return m, nil
	case hydrationThreshold, hydrationBatchSize:
		return m.withRegions(words)
	}
	return message{}, messageError(words, "unknown message")
}

func (m message) withRegions(words []string) (message, error) {
	if len(words) != 2 {
		return message{}, messageError(words, m.Word+" takes one number of regions")
	}
	// dm-clone reads an unsigned int.
	n, err := strconv.ParseUint(words[1], 10, 32)
	if err != nil {
		return message{}, messageError(words, fmt.Sprintf("%q is no number of regions", words[1]))
	}
	if m.Word == hydrationBatchSize && n == 0 {
		return message{}, messageError(words, "a batch has at least one region")
	}
	m.Regions = n
	return m, nil
}

// check refuses what parseMessage does not make.
func (m message) check() error {
	words := []string{m.Word}
	if m.Word == hydrationThreshold || m.Word == hydrationBatchSize || m.Regions != 0 {
		words = append(words, strconv.FormatUint(m.Regions, 10))
	}
	parsed, err := parseMessage(words)
	if err == nil && parsed != m {
		err = messageError(words, "not as it is spelled")
	}
	return err
}

// change is what the message asks for.
func (m message) change() change {
	switch m.Word {
	case hydrationThreshold:
		return change{Threshold: &m.Regions}
	case hydrationBatchSize:
		return change{Batch: &m.Regions}
	}
	return hydration(m.Word == enableHydration)
}

func messageError(words []string, why string) error {
	return &exit.Error{
		Code: exit.Usage, Doing: "send message", Object: fmt.Sprintf("%q", strings.Join(words, " ")),
		Cause: errors.New(why), Next: "Messages are: " + messageList + ".",
	}
}
