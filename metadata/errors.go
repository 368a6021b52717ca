package metadata

import "errors"

// Errors of Create and Open. They come wrapped, with what was found and where.
var (
	// ErrEmpty: Open, Check or Dump of a device whose two superblock copies are all zero:
	// there is no metadata.
	ErrEmpty = errors.New("no metadata")

	// ErrNotEmpty: Create of a device that holds something where superblocks and first
	// slots go, without CreateOptions.Force.
	ErrNotEmpty = errors.New("device is not empty")

	// ErrTooSmall: Create or Open of a device smaller than Size says.
	ErrTooSmall = errors.New("device too small for the metadata")

	// ErrDamaged: both superblock copies are bad or contradict each other, both slots of
	// a page are, or after a clean stop the slots are not those that were current.
	ErrDamaged = errors.New("metadata damaged")

	// ErrVersion: the metadata is of a newer format version, or uses a feature without
	// which it must not be opened and which this program does not know.
	ErrVersion = errors.New("metadata needs a newer version of this program")

	// ErrOlder: the metadata lack a commit that has succeeded: they went back in time.
	ErrOlder = errors.New("metadata is older than its last commit")

	// ErrMismatch: the metadata is that of another pair of devices, or was made for
	// another region or device size (Superblock.Match).
	ErrMismatch = errors.New("metadata is not of this pair")

	// ErrUnverified: too little of the source can be read to say whether it is the right one.
	ErrUnverified = errors.New("too little of the source can be read to know it by")
)

// Errors of an open Store. The first is a property of the metadata, the others are
// mistakes of the caller that would harm it.
var (
	// ErrReadOnly: a write to metadata that use a feature which this program does not
	// know and which permits reading only.
	ErrReadOnly = errors.New("metadata may only be read by this version of the program")

	// ErrClean: WritePage while the clean flag is on disk, or may be because an Update that
	// set it has failed. It is cleared, by Update, before the first write.
	ErrClean = errors.New("clean flag is set")

	// ErrUnflushed: Update with the clean flag, or Load, while a page has a slot that was
	// written and is not known to be flushed: nobody could say which one is current.
	ErrUnflushed = errors.New("region map has unflushed slots")

	// ErrDetached: the store has no device (Detached).
	ErrDetached = errors.New("metadata cannot be reached")

	// ErrNotLoaded: WritePage, or Update that sets the clean flag, before Load.
	ErrNotLoaded = errors.New("region map is not loaded")

	// ErrInvalid: a superblock given to Create or made by Update that could not be opened
	// again, or an Update that changes what is fixed when metadata is created.
	ErrInvalid = errors.New("invalid superblock")
)
