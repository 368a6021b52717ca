package engine

import (
	"context"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/records"
)

// writeRecord notes that the destination is about to be hydrated by this metadata. The record is a
// second guard: a machine on which it cannot be written, as one that was started from a read-only
// medium to rescue data, is not kept from its clone.
func (s *session) writeRecord(context.Context) error {
	if s.Dest.Record.Id.ID == "" {
		s.Log.Info().Str("destination", s.Dest.Path()).Msg("the destination has no identity, so it gets no record: lost metadata would go unnoticed")
	}
	if err := s.updateRecord(); err != nil {
		s.Warn("lost metadata would go unnoticed: %v", err)
	}
	return nil
}

// updateRecord brings the record up to date.
func (s *session) updateRecord() error {
	if s.lanes.core.Complete() {
		return s.Dest.Record.Forget()
	}
	sb := s.Meta.Store.Superblock()
	return s.Dest.Record.Write(&records.Record{
		Dest: s.Dest.Path(), Birth: s.Dest.Birth(), Source: s.Wanted.Definition.Source, Metadata: s.Wanted.Definition.Metadata,
		UUID: sb.UUID.String(), Session: sb.Session, Size: s.Dest.Geometry.Size, Hydrated: hydratedBytes(s.lanes.core.Geometry(), s.lanes.core.Regions()), Written: time.Now().UTC(),
	})
}

// lastRecord is updateRecord when the clone is up or ends: an error costs nothing but the guard's
// precision.
func (s *session) lastRecord() {
	if err := s.updateRecord(); err != nil {
		s.Log.Warn().Err(err).Msg("bring the record of the destination up to date")
	}
}
