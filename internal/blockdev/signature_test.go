package blockdev

import "testing"

// TestSignatureOfPartition: an empty partition is not refused for being one (blkid -p of util-linux
// 2.38).
func TestSignatureOfPartition(t *testing.T) {
	const entry = "DEVNAME=/dev/vdb1\nPART_ENTRY_SCHEME=dos\nPART_ENTRY_TYPE=0x83\nPART_ENTRY_NUMBER=1\nPART_ENTRY_DISK=254:16\n"
	for out, want := range map[string]string{
		entry:                                   "",
		entry + "TYPE=ext4\nUSAGE=filesystem\n": "it carries ext4",
		entry + "USAGE=other\n":                 "it carries a signature",
	} {
		if got, err := probed(out, 0, nil); got != want || err != nil {
			t.Errorf("%q: %q, %v; expected %q", out, got, err, want)
		}
	}
	if _, err := probed("", 0, nil); err == nil {
		t.Error("a blkid that says nothing has found nothing")
	}
}
