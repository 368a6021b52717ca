package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Negotiate agrees with the server at the other end of conn, to which nothing was sent yet, on an
// export: "" is the server's default. All of it takes no longer than limit. Afterwards requests may
// be sent, and nothing of the server's was read that belongs to them; conn has no deadline. After an
// error conn is of no use but to be closed.
func Negotiate(conn net.Conn, export string, limit time.Duration) (Export, error) {
	if err := checkName(export); err != nil {
		return Export{}, err
	}
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return Export{}, fmt.Errorf("negotiate NBD: %w", err)
	}
	e, err := negotiate(conn, export)
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return Export{}, fmt.Errorf("negotiate NBD export %q: %w", export, inWords(err, limit))
	}
	return e, nil
}

// checkName refuses what the protocol has no room for.
func checkName(export string) error {
	switch {
	case len(export) > nameMax:
		return fmt.Errorf("the name of an NBD export has at most %d bytes, this one %d: use a shorter one", nameMax, len(export))
	case !utf8.ValidString(export) || strings.ContainsRune(export, 0):
		return fmt.Errorf("the name of an NBD export is UTF-8 without zero bytes, and %q is not", export)
	}
	return nil
}

// inWords says what an error of the connection means here.
func inWords(err error, limit time.Duration) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %v have passed", ErrSilent, limit)
	}
	for _, closed := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, unix.EPIPE, unix.ECONNRESET} {
		if errors.Is(err, closed) {
			return ErrClosed
		}
	}
	return err
}

// negotiate is the exchange itself.
func negotiate(conn io.ReadWriter, export string) (Export, error) {
	var greeting [greetingSize]byte
	if _, err := io.ReadFull(conn, greeting[:]); err != nil {
		return Export{}, err
	}
	clientFlags, err := parseGreeting(greeting)
	if err != nil {
		return Export{}, err
	}
	if _, err := conn.Write(optionGoBytes(clientFlags, export)); err != nil {
		return Export{}, err
	}
	var e Export
	for range repliesMax {
		if last, err := e.takeNext(conn); last || err != nil {
			return e, err
		}
	}
	return Export{}, broken("more than %d replies to NBD_OPT_GO", repliesMax)
}

// takeNext reads one reply and takes it.
func (e *Export) takeNext(conn io.Reader) (last bool, err error) {
	var header [optionReplyHeaderSize]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return false, err
	}
	reply, err := parseOptionReply(header)
	if err != nil {
		return false, err
	}
	data := make([]byte, reply.length)
	if _, err := io.ReadFull(conn, data); err != nil {
		return false, err
	}
	return e.take(reply, data)
}
