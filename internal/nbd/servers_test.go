package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startServer starts a server that makes a socket, until the test ends. scripts/setup installs it.
func startServer(t *testing.T, socket, program string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("%v: scripts/setup installs it", err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s has not made its socket", program)
		}
	}
}

// connect retries: the socket may be there before the server listens.
func connect(t *testing.T, socket string) net.Conn {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
}

// readAt is one read in its simplest form.
func readAt(t *testing.T, conn net.Conn, handle uint64, off, length int64) (data []byte, failure error) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, RequestSize)
	Wire{}.Request(b, handle, off, length)
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, ReplySize)
	if _, err := io.ReadFull(conn, head); err != nil {
		t.Fatal(err)
	}
	got, failure, missing, err := Wire{}.Reply(head)
	if err != nil || got != handle || missing != 0 {
		t.Fatalf("reply to %d: handle %d, %d missing, %v", handle, got, missing, err)
	}
	if failure != nil {
		return nil, failure
	}
	data = make([]byte, length)
	if _, err := io.ReadFull(conn, data); err != nil {
		t.Fatal(err)
	}
	return data, nil
}

// TestNBDKit: the pattern plugin's bytes are their own offsets.
func TestNBDKit(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	startServer(t, socket, "nbdkit", "--foreground", "--unix", socket, "pattern", "size=1M")
	conn := connect(t, socket)
	e, err := Negotiate(conn, "", testLimit)
	if err != nil || e.Size != 1<<20 || !e.ReadOnly() || !e.MultiConn() {
		t.Fatalf("%+v, %v", e, err)
	}
	for _, off := range []int64{0, 4096, 1<<20 - 4096} {
		data, failure := readAt(t, conn, uint64(off)<<32|7, off, 4096)
		if failure != nil || int64(binary.BigEndian.Uint64(data[8:])) != off+8 {
			t.Errorf("bytes at %d: % x, %v", off, data[8:16], failure)
		}
	}
	if _, failure := readAt(t, conn, 1, 1<<20, 4096); failure != unix.EINVAL {
		t.Errorf("a read behind the end: %v", failure)
	}
	b := make([]byte, RequestSize)
	Wire{}.Disconnect(b)
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(b); !errors.Is(err, io.EOF) {
		t.Errorf("after a disconnect: %d bytes, %v", n, err)
	}
}

// TestNBDKitFails: the error filter's errors, and a size that is no multiple of 512.
func TestNBDKitFails(t *testing.T) {
	dir := t.TempDir()
	failing, odd := filepath.Join(dir, "failing"), filepath.Join(dir, "odd")
	startServer(t, failing, "nbdkit", "--foreground", "--unix", failing, "--filter=error", "memory", "1M", "error-pread=ENOMEM", "error-pread-rate=100%")
	startServer(t, odd, "nbdkit", "--foreground", "--unix", odd, "memory", "1000")
	conn := connect(t, failing)
	if _, err := Negotiate(conn, "", testLimit); err != nil {
		t.Fatal(err)
	}
	if _, failure := readAt(t, conn, 1, 0, 512); failure != unix.ENOMEM {
		t.Errorf("a read that fails with ENOMEM: %v", failure)
	}
	if _, err := Negotiate(connect(t, odd), "", testLimit); !errors.Is(err, ErrSize) {
		t.Errorf("an export of 1000 bytes: %v", err)
	}
}

// TestQemuNBD: an export with a name, and one that is not there.
func TestQemuNBD(t *testing.T) {
	dir := t.TempDir()
	socket, image := filepath.Join(dir, "socket"), filepath.Join(dir, "image")
	content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10/16)
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	startServer(t, socket, "qemu-nbd", "--read-only", "--persistent", "--shared=2", "--export-name=disk", "--format=raw", "--socket="+socket, image)
	conn := connect(t, socket)
	e, err := Negotiate(conn, "disk", testLimit)
	if err != nil || e.Size != 64<<10 || !e.ReadOnly() {
		t.Fatalf("%+v, %v", e, err)
	}
	if data, failure := readAt(t, conn, 9, 512, 8192); failure != nil || !bytes.Equal(data, content[512:512+8192]) {
		t.Errorf("other bytes than the image's: %v", failure)
	}
	if _, err := Negotiate(connect(t, socket), "other", testLimit); !errors.Is(err, ErrUnknownExport) {
		t.Errorf("an export that is not there: %v", err)
	}
}
