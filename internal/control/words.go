package control

import (
	"fmt"
	"math"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/text"
)

// DoneText is the percentage, cut and not rounded: 100 % means all of it.
func (s *Status) DoneText(space string) string {
	if s.Size == 0 || !s.Serves() {
		return "-"
	}
	tenths := math.Floor(s.done() * 1000)
	if s.Bytes.Remaining > 0 {
		tenths = min(tenths, 999)
	}
	return fmt.Sprintf("%.1f%s%%", tenths/10, space)
}

func RateText(rate int64) string {
	if rate <= 0 {
		return "-"
	}
	return text.Size(rate) + "/s"
}

// LimitText is a cap or floor, of which 0 is none.
func LimitText(rate int64) string {
	if rate == 0 {
		return "none"
	}
	return RateText(rate)
}

func EtaText(seconds *int64) string {
	if seconds == nil || *seconds == 0 {
		return "-"
	}
	return text.Duration(time.Duration(*seconds) * time.Second)
}

// ServiceText is the status in a line.
func (s *Status) ServiceText() string {
	switch {
	case !s.Serves():
		return text.Capital(s.State) + ": " + s.Reason
	case s.State == StateHydrated:
		return "Hydrated: " + s.UserPath() + " is complete in " + s.Dest
	}
	text := fmt.Sprintf("%s: %s of %s", text.Capital(s.State), s.DoneText(" "), text.Size(s.Size))
	if s.State != StateHydrating && s.State != StateYielding {
		return text + ". " + s.Reason
	}
	return text + fmt.Sprintf(", %s, ETA %s", RateText(s.Rate), EtaText(s.ETA))
}
