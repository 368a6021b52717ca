package exit

import (
	"errors"
	"fmt"
	"testing"
)

func TestCode(t *testing.T) {
	typed := &Error{Code: Busy, Doing: "open the destination", Object: "/dev/sdb", Cause: errors.New("device or resource busy"), Next: "umount /mnt"}
	for _, c := range []struct {
		err  error
		code int
		next string
	}{
		{nil, 0, ""},
		{errors.New("plain"), Other, ""},
		{typed, Busy, "umount /mnt"},
		{fmt.Errorf("start: %w", typed), Busy, "umount /mnt"},
		{errors.Join(errors.New("plain"), typed), Busy, "umount /mnt"},
	} {
		if got := Code(c.err); got != c.code {
			t.Errorf("Code(%v) = %d, want %d", c.err, got, c.code)
		}
		if got := Next(c.err); got != c.next {
			t.Errorf("Next(%v) = %q, want %q", c.err, got, c.next)
		}
	}
	if got, want := typed.Error(), "open the destination /dev/sdb: device or resource busy"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
}

func TestMeaningIsComplete(t *testing.T) {
	for i, m := range Meaning {
		if m.Code != i || m.Text == "" {
			t.Errorf("Meaning[%d] is code %d %q", i, m.Code, m.Text)
		}
	}
	if len(Meaning) != Refused+1 {
		t.Errorf("%d meanings for %d codes", len(Meaning), Refused+1)
	}
}
