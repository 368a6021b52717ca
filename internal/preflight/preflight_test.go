package preflight

import (
	"errors"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
)

// TestOfOneDaemon: what is found wrong counts only if the daemon that it was found of serves still.
func TestOfOneDaemon(t *testing.T) {
	wrong, gone := errors.New("wrong"), errors.New("gone")
	for name, c := range map[string]struct {
		serve []int // process IDs, one for each question; 0: none serves
		looks []error
		want  error
	}{
		"nothing is wrong":                   {[]int{7}, []error{nil}, nil},
		"the same serves":                    {[]int{7, 7}, []error{wrong}, wrong},
		"another serves":                     {[]int{7, 8, 8}, []error{wrong, nil}, nil},
		"another, and it is wrong there too": {[]int{7, 8, 8, 8}, []error{wrong, wrong}, wrong},
		"and another":                        {[]int{7, 8, 8, 9, 9}, []error{wrong, wrong, nil}, nil},
		"none serves":                        {[]int{0}, nil, gone},
		"none serves any more":               {[]int{7, 0}, []error{wrong}, gone},
	} {
		serving := func() (*control.Status, error) {
			pid := c.serve[0]
			if c.serve = c.serve[1:]; pid == 0 {
				return nil, gone
			}
			return &control.Status{Identity: control.Identity{PID: pid}}, nil
		}
		err := ofOneDaemon(serving, func(*control.Status) error {
			err := c.looks[0]
			c.looks = c.looks[1:]
			return err
		})
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, expected %v", name, err, c.want)
		}
		if len(c.serve) > 0 || len(c.looks) > 0 {
			t.Errorf("%s: %v and %v are left", name, c.serve, c.looks)
		}
	}
}

// TestServingIsAwaited: a daemon that is about to serve, and the moment between two daemons.
func TestServingIsAwaited(t *testing.T) {
	states := []string{control.StateStopping, "", control.StateRecovering, control.StateHydrating}
	p := &preflight{def: &definition.Definition{Name: "c"}, ask: func() (*control.Status, error) {
		state := states[0]
		if states = states[1:]; state == "" {
			return nil, errors.New("nobody answers")
		}
		return &control.Status{Identity: control.Identity{PID: 7}, Condition: control.Condition{State: state}}, nil
	}}
	if st, err := p.serving(); err != nil || st.PID != 7 || len(states) > 0 {
		t.Errorf("%+v, %v, left: %v", st, err, states)
	}
}
