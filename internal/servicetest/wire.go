package servicetest

import "time"

// Port is the name of the virtio port that host and agent talk over: each message is a JSON value.
const Port = "agent"

// A Request asks the agent to run a command.
type Request struct {
	ID    int // not 0
	Args  []string
	Stdin []byte
}

// A Reply says how a command ended. One with ID 0 comes first: the agent is there.
type Reply struct {
	ID             int
	Code           int // exit status; -1 = killed
	Stdout, Stderr []byte
	Took           time.Duration
	Error          string // why it could not be run
}
