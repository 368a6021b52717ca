package nbd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

const testLimit = 5 * time.Second

func TestNegotiate(t *testing.T) {
	for _, c := range []struct {
		name string
		says answer
		want Export
	}{
		{"plain", greets().exports(1<<20, flagHasFlags|flagReadOnly).acknowledges(),
			Export{Size: 1 << 20, flags: flagHasFlags | flagReadOnly, MinBlock: 512, PreferredBlock: 4096, MaxBlock: 32 << 20}},
		{"block sizes first", greets().blocks(1, 65536, 1<<25).exports(512, flagHasFlags|flagMultiConn).acknowledges(),
			Export{Size: 512, flags: flagHasFlags | flagMultiConn, MinBlock: 1, PreferredBlock: 65536, MaxBlock: 1 << 25}},
		{"no maximum", greets().exports(8192, flagHasFlags).blocks(4096, 4096, 1<<32-1).acknowledges(),
			Export{Size: 8192, flags: flagHasFlags, MinBlock: 4096, PreferredBlock: 4096, MaxBlock: 1<<31 - 512}},
		{"more than was asked for", greets().replies(replyInfo, answer{0, 2, 'x'}).exports(512, flagHasFlags).exports(512, flagHasFlags).acknowledges(),
			Export{Size: 512, flags: flagHasFlags, MinBlock: 512, PreferredBlock: 4096, MaxBlock: 32 << 20}},
		{"requests follow", append(greets().exports(512, flagHasFlags).acknowledges(), "not read"...),
			Export{Size: 512, flags: flagHasFlags, MinBlock: 512, PreferredBlock: 4096, MaxBlock: 32 << 20}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.told = true
			got, err := Negotiate(serve(t, c.says, true), "", testLimit)
			if err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
			if got.ReadOnly() != (c.want.flags&2 != 0) || got.MultiConn() != (c.want.flags&256 != 0) {
				t.Errorf("flags %#x: read-only %v, several connections %v", got.flags, got.ReadOnly(), got.MultiConn())
			}
		})
	}
}

// TestNegotiateLies: each thing that a server can do wrong is an error of its kind, in words.
func TestNegotiateLies(t *testing.T) {
	const flags = flagHasFlags
	info := func(data answer) answer { return greets().replies(replyInfo, data) }
	for _, c := range []struct {
		name  string
		says  answer
		want  error
		words string
	}{
		{"nothing", nil, ErrClosed, "closed"},
		{"half a greeting", greets()[:11], ErrClosed, "closed"},
		{"another protocol", answer("SSH-2.0-OpenSSH_9.2p1 Debian\r\n"), ErrNotNBD, `"SSH-2.0-"`},
		{"oldstyle", answer{}.u64(greetingMagic).u64(oldstyleMagic).u64(1 << 20).u32(1), ErrTooOld, "oldstyle"},
		{"garbage behind the greeting", answer{}.u64(greetingMagic).u64(7).u16(3), ErrProtocol, "option magic"},
		{"not fixed newstyle", answer{}.u64(greetingMagic).u64(optionMagic).u16(0), ErrTooOld, "fixed newstyle"},
		{"no reply", greets(), ErrClosed, "closed"},
		{"half a reply", greets().exports(512, flags)[:30], ErrClosed, "closed"},
		{"half of the data", greets().exports(512, flags)[:40], ErrClosed, "closed"},
		{"garbage as a reply", append(greets(), bytes.Repeat([]byte{0xee}, 64)...), ErrProtocol, "eeeeeeeeeeeeeeee"},
		{"a reply to another option", greets().u64(optionReplyMagic).u32(6).u32(replyAck).u32(0), ErrProtocol, "option 6"},
		{"a reply without end", greets().u64(optionReplyMagic).u32(optionGo).u32(replyInfo).u32(1<<32 - 1), ErrProtocol, "4294967295 bytes"},
		{"a long reply", greets().u64(optionReplyMagic).u32(optionGo).u32(replyInfo).u32(replyMax + 1), ErrProtocol, "8193 bytes"},
		{"a reply of another type", greets().replies(2, answer("export")), ErrProtocol, "type 2"},
		{"an acknowledgement with data", greets().exports(512, flags).replies(replyAck, answer("x")), ErrProtocol, "1 bytes of data"},
		{"an acknowledgement alone", greets().acknowledges(), ErrProtocol, "never told"},
		{"replies without end", append(greets(), bytes.Repeat(answer{}.exports(512, flags), 100)...), ErrProtocol, "more than 32"},
		{"no information", info(nil), ErrProtocol, "of 0 bytes"},
		{"one byte of information", info(answer{0}), ErrProtocol, "of 1 bytes"},
		{"a short export", info(answer{}.u16(infoExport).u64(512)), ErrProtocol, "of 8 bytes, where 10"},
		{"a long export", info(answer{}.u16(infoExport).u64(512).u32(flags)), ErrProtocol, "of 12 bytes, where 10"},
		{"short block sizes", info(answer{}.u16(infoBlockSizes).u32(1).u32(512)), ErrProtocol, "of 8 bytes, where 12"},
		{"no flags", greets().exports(512, flagReadOnly), ErrProtocol, "NBD_FLAG_HAS_FLAGS"},
		{"empty", greets().exports(0, flags), ErrSize, "empty"},
		{"too large", greets().exports(1<<63, flags), ErrSize, "9223372036854775808"},
		{"not in sectors", greets().exports(1<<20+100, flags), ErrSize, "1048676 bytes are no multiple of 512"},
		{"two sizes", greets().exports(512, flags).exports(1024, flags), ErrProtocol, "two answers"},
		{"two sets of flags", greets().exports(512, flags).exports(512, flags|flagReadOnly), ErrProtocol, "two answers"},
		{"a minimum of 0", greets().blocks(0, 4096, 1<<20), ErrProtocol, "minimum block size of 0"},
		{"a minimum of 513", greets().blocks(513, 4096, 1<<20), ErrProtocol, "minimum block size of 513"},
		{"a large minimum", greets().blocks(128<<10, 128<<10, 1<<20), ErrProtocol, "minimum block size of 131072"},
		{"a preferred size of 3000", greets().blocks(1, 3000, 1<<20), ErrProtocol, "preferred block size of 3000"},
		{"a preferred size below the minimum", greets().blocks(4096, 512, 1<<20), ErrProtocol, "preferred block size of 512"},
		{"a maximum below the minimum", greets().blocks(4096, 4096, 512), ErrProtocol, "maximum block size of 512"},
		{"a maximum between", greets().blocks(4096, 4096, 6000), ErrProtocol, "maximum block size of 6000"},
		{"a size that is no multiple of blocks", greets().exports(4096+512, flags).blocks(4096, 4096, 1<<20).acknowledges(), ErrProtocol, "4608 bytes with a minimum"},
		{"no NBD_OPT_GO", greets().replies(errorUnsup, nil), ErrTooOld, "NBD_OPT_GO"},
		{"policy", greets().replies(errorPolicy, answer("not \x1b you")), ErrRefused, `It says: "not \x1b you"`},
		{"invalid", greets().replies(errorInvalid, nil), ErrRefused, "invalid"},
		{"platform", greets().replies(errorPlatform, nil), ErrRefused, "platform"},
		{"TLS", greets().replies(errorTLS, nil), ErrTLSRequired, "TLS"},
		{"no such export", greets().replies(errorUnknown, nil), ErrUnknownExport, "no such export"},
		{"shutting down", greets().replies(errorShutdown, nil), ErrShutdown, "shutting down"},
		{"block sizes", greets().replies(errorBlockSizes, nil), ErrRefused, "block sizes"},
		{"too big", greets().replies(errorTooBig, nil), ErrRefused, "too large"},
		{"an error of later", greets().replies(replyError+99, nil), ErrRefused, "error 99"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Negotiate(serve(t, c.says, false), "disk", testLimit)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), `export "disk"`) {
				t.Errorf("%v; want %q with %q", err, c.want, c.words)
			}
		})
	}
}

// TestNegotiateLimit: a server that stops, or that says little and never ends, is given up.
func TestNegotiateLimit(t *testing.T) {
	never := answer{}.u64(optionReplyMagic)
	for name, conn := range map[string]func(*testing.T) net.Conn{
		"silent":             func(t *testing.T) net.Conn { return serve(t, nil, true) },
		"silent after a bit": func(t *testing.T) net.Conn { return serve(t, greets().exports(512, flagHasFlags), true) },
		"dripping": func(t *testing.T) net.Conn {
			return serveDripping(t, append(greets(), bytes.Repeat(never, 1000)...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := Negotiate(conn(t), "", 50*time.Millisecond)
			if !errors.Is(err, ErrSilent) || !strings.Contains(err.Error(), "50ms") {
				t.Errorf("%v, want %v", err, ErrSilent)
			}
			if took := time.Since(start); took > testLimit {
				t.Errorf("given up after %v", took)
			}
		})
	}
}

// TestNegotiateAsks: what the client sends, byte for byte, and that an export's name is checked
// before anything is sent.
func TestNegotiateAsks(t *testing.T) {
	ours, its := net.Pipe()
	defer ours.Close()
	got := make(chan []byte, 1)
	go func() {
		defer its.Close()
		if _, err := its.Write(answer{}.u64(greetingMagic).u64(optionMagic).u16(flagFixedNewstyle)); err != nil {
			t.Error(err)
		}
		b := make([]byte, 4+16+4+4+2+2)
		if _, err := io.ReadFull(its, b); err != nil {
			t.Error(err)
		}
		got <- b
	}()
	if _, err := Negotiate(ours, "disk", testLimit); !errors.Is(err, ErrClosed) {
		t.Errorf("the server closes: %v", err)
	}
	want := "\x00\x00\x00\x01" + "IHAVEOPT" + "\x00\x00\x00\x07" + "\x00\x00\x00\x0c" + "\x00\x00\x00\x04disk" + "\x00\x01\x00\x03"
	if b := <-got; string(b) != want {
		t.Errorf("sent %q, want %q", b, want)
	}
	for _, name := range []string{strings.Repeat("x", 4097), "a\x00b", "\xff"} {
		if _, err := Negotiate(nil, name, testLimit); err == nil {
			t.Errorf("the name %.10q is taken", name)
		}
	}
	if err := checkName(strings.Repeat("x", 4096)); err != nil {
		t.Error(err)
	}
}

// fuzzConn is a server that has said all that it says.
type fuzzConn struct {
	*bytes.Reader
}

func (fuzzConn) Write(b []byte) (int, error) { return len(b), nil }

// FuzzNegotiate: whatever a server says, there is an error, or an export that a clone can have; and
// only a limited part of it is read.
func FuzzNegotiate(f *testing.F) {
	f.Add([]byte(greets().exports(1<<20, flagHasFlags).blocks(1, 4096, 1<<25).acknowledges()))
	f.Add([]byte(greets().replies(replyInfo, answer{0, 2, 'x'}).exports(512, flagHasFlags).acknowledges()))
	f.Add([]byte(greets().replies(errorPolicy, answer("no"))))
	f.Add([]byte(answer{}.u64(greetingMagic).u64(oldstyleMagic)))
	f.Fuzz(func(t *testing.T, says []byte) {
		r := bytes.NewReader(says)
		e, err := negotiate(fuzzConn{r}, "")
		if read := len(says) - r.Len(); read > greetingSize+repliesMax*(optionReplyHeaderSize+replyMax) {
			t.Errorf("%d bytes were read", read)
		}
		if err != nil {
			return
		}
		if e.Size <= 0 || e.Size%512 != 0 || e.MinBlock < 1 || e.Size%e.MinBlock != 0 || e.PreferredBlock < 512 || e.MaxBlock < e.MinBlock {
			t.Errorf("an export that cannot be used was taken: %+v", e)
		}
	})
}
