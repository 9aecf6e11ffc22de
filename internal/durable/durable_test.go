package durable

import (
	"os"
	"path/filepath"
	"testing"
)

// entries gives the names in a directory with their content.
func entries(t *testing.T, dir string) map[string]string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range list {
		b, _ := os.ReadFile(filepath.Join(dir, e.Name())) // of a directory nothing
		all[e.Name()] = string(b)
	}
	return all
}

func wants(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := entries(t, dir)
	for name, text := range want {
		if found, ok := got[name]; !ok || found != text {
			t.Errorf("%s: got %q, want %q", name, found, text)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %d entries, want %d: %q", len(got), len(want), got)
	}
}

// That it survives a power cut is shown by the queue's crash tests, which write by it.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	// What a crash left half written is no hindrance, and does not show through.
	if err := os.WriteFile(path+TemporarySuffix, []byte("something longer"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two", ""} {
		if err := WriteFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		wants(t, dir, map[string]string{"file": text})
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestWriteFileFails: the old file stays, and nothing of the new one.
func TestWriteFileFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil { // cannot be replaced
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("text")); err == nil {
		t.Error("replaced a directory")
	}
	wants(t, dir, map[string]string{"file": ""})
	if err := WriteFile(filepath.Join(dir, "missing", "file"), nil); err == nil {
		t.Error("wrote into a directory that is missing")
	}
	// /dev/full takes nothing, as a full disk.
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/dev/full", link+TemporarySuffix); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(link, []byte("text")); err == nil {
		t.Error("wrote onto a full disk")
	}
	wants(t, dir, map[string]string{"file": ""})
}
