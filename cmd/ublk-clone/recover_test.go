package main

import (
	"testing"
	"time"
)

// TestServed: a name that is locked and does not answer is waited for; what becomes of it tells whether there is
// something to recover.
func TestServed(t *testing.T) {
	const soon = 100 * time.Millisecond
	t.Run("it ends", func(t *testing.T) {
		dir := runDir(t.TempDir())
		if err := dir.store(&definition{Name: "c"}); err != nil {
			t.Fatal(err)
		}
		lock, err := dir.acquire("c")
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(soon, func() { lock.release() })
		if served, err := dir.served("c"); served || err != nil {
			t.Errorf("a daemon that ends: served %v, %v", served, err)
		}
	})
	t.Run("it comes up", func(t *testing.T) {
		dir, _ := testServer(t, echo)
		lock, err := dir.acquire("c")
		if err != nil {
			t.Fatal(err)
		}
		defer lock.release()
		if served, err := dir.served("c"); !served || err != nil {
			t.Errorf("a daemon that answers: served %v, %v", served, err)
		}
	})
}
