package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxFile bounds a settings file, in bytes: a larger one is something else.
const maxFile = 1 << 20

// maxDepth bounds the nesting of a settings file; names have two parts.
const maxDepth = 4

// An entry is one setting of a file.
type entry struct {
	name string
	text string
	line int
}

// parseFile reads a settings file: YAML, names written with dots or nested, so
// that "sink.lanes: 4" and "sink: {lanes: 4}" are the same. A value is taken as
// its text; a list is joined by commas; an empty value is as if it were not there.
// It returns what it could read and all that is wrong with the rest.
func parseFile(name string, data []byte) ([]entry, Faults) {
	f := fileParser{name: name, lines: make(map[string]int)}
	if len(data) > maxFile {
		f.fault("", 0, fmt.Sprintf("want at most %v", ByteSize(maxFile)))
		return nil, f.faults
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		f.fault("", 0, err.Error())
		return nil, f.faults
	}
	var doc, second yaml.Node
	switch err := loader.Load(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		f.fault("", 0, "is not YAML: "+oneLine(err.Error()))
		return nil, f.faults
	}
	if err := loader.Load(&second); !errors.Is(err, io.EOF) {
		f.fault("", second.Line, "want one document, without ---")
	}
	for _, root := range doc.Content {
		f.mapping("", root, 0)
	}
	return f.entries, f.faults
}

// A fileParser flattens one document.
type fileParser struct {
	name    string
	entries []entry
	lines   map[string]int // where each setting was first seen
	faults  Faults
}

func (f *fileParser) fault(setting string, line int, want string) {
	source := f.name
	if line > 0 {
		source = fmt.Sprintf("%s:%d", f.name, line)
	}
	if setting == "" {
		setting = "file"
	}
	f.faults = append(f.faults, Fault{Setting: setting, Source: source, Want: want})
}

func (f *fileParser) mapping(prefix string, n *yaml.Node, depth int) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode || depth > maxDepth {
		f.fault(prefix, n.Line, "want lines of NAME: VALUE")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Tag != "!!str" {
			f.fault(prefix, key.Line, "want the name of a setting before the colon")
			continue
		}
		name := key.Value
		if prefix != "" {
			name = prefix + "." + key.Value
		}
		f.value(name, value, depth)
	}
}

func (f *fileParser) value(name string, n *yaml.Node, depth int) {
	switch n.Kind {
	case yaml.MappingNode:
		f.mapping(name, n, depth+1)
		return
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return
		}
		f.add(name, n.Value, n.Line)
	case yaml.SequenceNode:
		parts := make([]string, 0, len(n.Content))
		for _, c := range n.Content {
			if c.Kind != yaml.ScalarNode {
				f.fault(name, c.Line, "want a list of plain values")
				return
			}
			parts = append(parts, c.Value)
		}
		f.add(name, strings.Join(parts, ","), n.Line)
	default:
		f.fault(name, n.Line, "want a plain value: anchors and aliases are not understood")
	}
}

func (f *fileParser) add(name, text string, line int) {
	if first, ok := f.lines[name]; ok {
		f.fault(name, line, fmt.Sprintf("is set twice: first in line %d", first))
		return
	}
	f.lines[name] = line
	f.entries = append(f.entries, entry{name, text, line})
}

// oneLine keeps a parser's message from breaking the one-line form of faults.
func oneLine(s string) string {
	return strings.Join(strings.Fields(s), " ")
}
