package admin

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"

	"github.com/VictoriaMetrics/metrics"
)

// metrics answers in the Prometheus text format: what the rooms have registered and
// the process, with type and help out of [Table].
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	var raw bytes.Buffer
	fmt.Fprintf(&raw, "sluice_build_info{version=%q,go=%q} 1\n", s.cfg.Version, runtime.Version())
	for _, set := range s.parts.Metrics {
		set.WritePrometheus(&raw)
	}
	var process bytes.Buffer
	metrics.WriteProcessMetrics(&process)
	metrics.WriteFDMetrics(&process)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	writeMetrics(w, raw.String(), process.String())
}

// writeMetrics prints the samples family by family, in the order of [Table] and with
// its texts. Samples that the table does not know come last and without texts, so
// that none is ever hidden; of the process's own samples only those in the table are
// shown, since the library gives many that mean little.
func writeMetrics(w io.Writer, samples, process string) {
	families := make(map[string][]string)
	var unknown []string
	collect := func(text string, keepUnknown bool) {
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
				continue
			}
			if name := familyOf(line); name != "" {
				families[name] = append(families[name], line)
			} else if keepUnknown {
				unknown = append(unknown, line)
			}
		}
	}
	collect(samples, true)
	collect(process, false)
	for _, m := range Table {
		lines := families[m.Name]
		if len(lines) == 0 {
			continue
		}
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s\n", m.Name, m.Help, m.Name, m.Type, strings.Join(lines, "\n"))
	}
	for _, line := range unknown {
		fmt.Fprintln(w, line)
	}
}

// familyOf gives the name under which [Table] has the sample of a line, or "".
func familyOf(line string) string {
	name := line
	if i := strings.IndexAny(line, "{ "); i >= 0 {
		name = line[:i]
	}
	if _, ok := lookup(name); ok {
		return name
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok {
			if m, ok := lookup(base); ok && m.Type == HistogramType {
				return base
			}
		}
	}
	return ""
}

func lookup(name string) (Metric, bool) {
	for _, m := range Table {
		if m.Name == name {
			return m, true
		}
	}
	return Metric{}, false
}
