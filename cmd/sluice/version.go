package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// release is set when a release is built, by -ldflags "-X main.release=…".
var release string

// A buildInfo says what runs.
type buildInfo struct {
	V        int    `json:"v"`
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Date     string `json:"date,omitempty"`
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// build reads what the Go tool wrote into the binary.
func build() buildInfo {
	b := buildInfo{V: 1, Version: release, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		b.Version = cmp.Or(b.Version, "unknown")
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Date = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	b.Version = cmp.Or(b.Version, strings.Trim(info.Main.Version, "()"), "unknown")
	return b
}

// String is the first line of the banner.
func (b buildInfo) String() string {
	return fmt.Sprintf("sluice %s (%s, %s)", b.Version, b.Go, b.Platform)
}

type versionCommand struct {
	JSON bool `name:"json" help:"Answer as one JSON object."`
}

// Run prints what runs.
func (c *versionCommand) Run(o *printer) error {
	b := build()
	if c.JSON {
		return o.json(b)
	}
	o.printf("%s\n", b)
	return nil
}
