package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// filesWith names the files under dir in which a text stands.
func filesWith(t *testing.T, dir, text string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(text)) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAnEncryptedQueueNeedsItsKeyEverywhere(t *testing.T) {
	const key, other = "8d1f60c4a85a7e0b2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	const id, marker = "995b6cfc", "f3b9a1c07d52e846"
	keys := file(t, "queue.key", "# the queue of this edge\n\n"+key+"\n", 0o600)
	both := file(t, "both.key", other+"\n"+key+"\n", 0o600)
	wrong := file(t, "wrong.key", other+"\n", 0o600)
	dir := t.TempDir()
	s := startServer(t, dir, nobody, "--queue.encryption-key-file="+keys)
	s.hit("idsite=1&rec=1&url=http://shop.example/" + marker)
	// A tool asks the running Sluice, whatever it knows of keys.
	if code, stdout, stderr := s.run("queue", "ls", "--queue.encryption-key-file=/no/such/file"); code != exitOK || !strings.Contains(stdout, marker) {
		t.Errorf("queue ls exits %d: %s%s", code, stdout, stderr)
	}
	s.stop()
	if found := filesWith(t, dir, marker); len(found) > 0 {
		t.Errorf("in clear in %q", found)
	}
	edge := []string{"--matomo.url=" + nobody, "--data-dir=" + dir, "--queue.reserve=64MiB", "--listen=127.0.0.1:0", "--admin.listen=127.0.0.1:0"}
	tool := []string{"--data-dir=" + dir, "--admin.listen=" + s.private}
	tests := []struct {
		name, command string
		args          []string
		keys          string
		code          int
		want          string // in what it prints
	}{
		{"a tool with the key reads the hits", "queue export", tool, keys, exitOK, marker},
		{"a tool with a key before it reads the hits", "queue export", tool, both, exitOK, marker},
		{"a tool without a key says so", "queue stats", tool, "", exitSettings, id},
		{"a tool with another key says so", "queue verify", tool, wrong, exitSettings, id},
		{"a tool without the file says so", "queue stats", tool, "/no/such/file", exitSettings, "queue.encryption-key-file"},
		{"an edge without a key says so", "serve", edge, "", exitSettings, id},
		{"an edge with another key says so", "serve", edge, wrong, exitSettings, id},
		{"a check without a key says so", "check", edge, "", exitSettings, id},
		{"a check with another key says so", "check", edge, wrong, exitSettings, id},
		{"a check without the file says so", "check", edge, "/no/such/file", exitSettings, "no such file"},
		{"a check with the key is content", "check", edge, keys, exitOK, "keys " + id},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := append(strings.Fields(tt.command), tt.args...)
			if tt.keys != "" {
				args = append(args, "--queue.encryption-key-file="+tt.keys)
			}
			code, stdout, stderr := command(nil, args...)
			if text := stdout + stderr; code != tt.code || !strings.Contains(text, tt.want) {
				t.Errorf("exit %d, want %d with %q:\n%s", code, tt.code, tt.want, text)
			}
			if strings.Contains(tt.want, id) && tt.code == exitSettings && !strings.Contains(stdout+stderr, "try: "+missingKey) {
				t.Errorf("it does not say what to do:\n%s%s", stdout, stderr)
			}
			if strings.Contains(stdout+stderr, key[:16]) || strings.Contains(stdout+stderr, other[:16]) {
				t.Errorf("a key is shown:\n%s%s", stdout, stderr)
			}
		})
	}

	// Without encryption the same hit is there: the search is not blind.
	clear := t.TempDir()
	s = startServer(t, clear, nobody)
	s.hit("idsite=1&rec=1&url=http://shop.example/" + marker)
	s.stop()
	if len(filesWith(t, clear, marker)) == 0 {
		t.Error("the test is blind: the hit is nowhere in clear")
	}
}
