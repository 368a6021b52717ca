package definition

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// Message is one of dm-clone's: its word and, for two of them, a number of
// regions.
type Message struct {
	Word    string `json:"word"`
	Regions uint64 `json:"regions,omitempty"`
}

// dm-clone's words.
const (
	EnableHydration    = "enable_hydration"
	DisableHydration   = "disable_hydration"
	HydrationThreshold = "hydration_threshold"
	HydrationBatchSize = "hydration_batch_size"
)

const MessageList = EnableHydration + ", " + DisableHydration + ", " + HydrationThreshold + " N, " + HydrationBatchSize + " N"

// ParseMessage reads the words of `message NAME WORDS...`. A leading 0, the
// sector that `dmsetup message` asks for, is ignored.
func ParseMessage(words []string) (Message, error) {
	if len(words) > 1 && words[0] == "0" {
		words = words[1:]
	}
	if len(words) == 0 {
		return Message{}, messageError(words, "no message")
	}
	m, args := Message{Word: strings.ToLower(words[0])}, words[1:]
	switch m.Word {
	case EnableHydration, DisableHydration:
		if len(args) != 0 {
			return Message{}, messageError(words, m.Word+" takes no argument")
		}
		return m, nil
	case HydrationThreshold, HydrationBatchSize:
		return m.withRegions(words)
	}
	return Message{}, messageError(words, "unknown message")
}

func (m Message) withRegions(words []string) (Message, error) {
	if len(words) != 2 {
		return Message{}, messageError(words, m.Word+" takes one number of regions")
	}
	// dm-clone reads an unsigned int.
	n, err := strconv.ParseUint(words[1], 10, 32)
	if err != nil {
		return Message{}, messageError(words, fmt.Sprintf("%q is not a number of regions", words[1]))
	}
	if m.Word == HydrationBatchSize && n == 0 {
		return Message{}, messageError(words, "a batch has at least one region")
	}
	m.Regions = n
	return m, nil
}

// Check refuses what ParseMessage does not make.
func (m Message) Check() error {
	words := []string{m.Word}
	if m.Word == HydrationThreshold || m.Word == HydrationBatchSize || m.Regions != 0 {
		words = append(words, strconv.FormatUint(m.Regions, 10))
	}
	parsed, err := ParseMessage(words)
	if err == nil && parsed != m {
		err = messageError(words, "not as it is spelled")
	}
	return err
}

// Change is what the message asks for.
func (m Message) Change() Change {
	switch m.Word {
	case HydrationThreshold:
		return Change{Threshold: &m.Regions}
	case HydrationBatchSize:
		return Change{Batch: &m.Regions}
	}
	return Hydration(m.Word == EnableHydration)
}

func messageError(words []string, why string) error {
	return &exit.Error{
		Code: exit.Usage, Doing: "send message", Object: fmt.Sprintf("%q", strings.Join(words, " ")),
		Cause: errors.New(why), Next: "Messages are: " + MessageList + ".",
	}
}
