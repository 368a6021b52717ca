package nbd

import (
	"errors"
	"fmt"
)

// What can be wrong with a server. Errors of this package wrap one of these, or the error of the
// connection.
var (
	// ErrSilent: the server has not said all that it has to within the limit.
	ErrSilent = errors.New("the server does not answer in time")
	// ErrClosed: the server has closed the connection before the end of the negotiation. Servers
	// also do that when they have no place for one more client.
	ErrClosed = errors.New("the server has closed the connection")
	// ErrNotNBD: what answers is no NBD server.
	ErrNotNBD = errors.New("this is no NBD server")
	// ErrTooOld: the server does not know what this client needs: fixed newstyle negotiation and
	// NBD_OPT_GO.
	ErrTooOld = errors.New("the server is too old")
	// ErrUnknownExport: the server has no such export.
	ErrUnknownExport = errors.New("the server has no such export")
	// ErrTLSRequired: the server wants TLS.
	ErrTLSRequired = errors.New("the server demands TLS")
	// ErrRefused: the server has refused the export for another reason.
	ErrRefused = errors.New("the server refuses the export")
	// ErrProtocol: the server sends what the protocol does not allow.
	ErrProtocol = errors.New("the server breaks the NBD protocol")
	// ErrSize: the export has a size that no clone can have.
	ErrSize = errors.New("the export has a size that cannot be used")
	// ErrShutdown: the server is going down and serves no more requests (NBD_ESHUTDOWN).
	ErrShutdown = errors.New("the server is shutting down")
)

// broken is an ErrProtocol that says what was sent.
func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}
