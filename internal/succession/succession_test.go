package succession

import (
	"context"
	"os"
	"testing"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// ending is the daemon of a clone that says once that it serves, or that it stops, and then goes as
// a deletion does: the definition, the socket, and the lock.
func ending(t *testing.T, def *definition.Definition, state string) control.Dir {
	t.Helper()
	dir := control.Dir(t.TempDir())
	lock, err := os.Create(dir.LockPath(def.Name))
	if err == nil {
		err = sys.FlockExclusive(int(lock.Fd()))
	}
	if err == nil {
		err = dir.Store(def)
	}
	if err != nil {
		t.Fatal(err)
	}
	var server *control.Server
	server, err = control.Listen(dir.SocketPath(def.Name), zerolog.Nop(), func(context.Context, control.Request) control.Answer {
		_ = os.Remove(dir.DefinitionPath(def.Name))
		_ = os.Remove(dir.SocketPath(def.Name))
		lock.Close()
		return control.Answer{Status: &control.Status{Condition: control.Condition{State: state}}}
	})
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve()
	t.Cleanup(func() { _ = server.Close() })
	return dir
}

// TestAddBesideDeletion: an add of a clone that is just being deleted begins it anew.
func TestAddBesideDeletion(t *testing.T) {
	for _, state := range []string{control.StatePaused, control.StateStopping} {
		def := definition.Definition{Name: "c"}
		started := 0
		there, err := Clones{Dir: ending(t, &def, state)}.Add(definition.Start{Definition: def}, func(definition.Start) error {
			started++
			return nil
		})
		if there || err != nil || started != 1 {
			t.Errorf("%s: there %t, started %d times, %v", state, there, started, err)
		}
	}
}
