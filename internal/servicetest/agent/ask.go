package main

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"time"
)

// askRounds is how often each is asked: the best of them is what the daemon needs, whatever else
// runs in the guest.
const askRounds = 5

// ask asks the daemons at these control sockets for their status, one after the other, and prints
// for each the time to the answer in microseconds: the best, the worst, the socket.
func ask(sockets []string) error {
	for _, socket := range sockets {
		var took []time.Duration
		for range askRounds {
			d, err := status(socket)
			if err != nil {
				return err
			}
			took = append(took, d)
		}
		fmt.Println(slices.Min(took).Microseconds(), slices.Max(took).Microseconds(), socket)
	}
	return nil
}

// status takes the time of one question, the connection's included.
func status(socket string) (took time.Duration, err error) {
	from := time.Now()
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, `{"verb":"status"}`); err != nil {
		return 0, err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	took = time.Since(from)
	if err != nil || len(line) < len(`{"status":{}}`) || line[:10] != `{"status":` {
		return 0, fmt.Errorf("%s answers %.80q: %v", socket, line, err)
	}
	return took, nil
}
