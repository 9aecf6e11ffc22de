package config

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// envPrefix begins the name of every setting in the environment.
const envPrefix = "SLUICE_"

// Where a value may have come from, besides "FILE:LINE".
const (
	sourceFlag    = "flag"
	sourceEnv     = "environment"
	sourceDefault = "default"
)

// kubernetesVariable matches what Kubernetes puts into the environment of every
// container for a service named sluice or sluice-something; these are not settings.
var kubernetesVariable = regexp.MustCompile(`^SLUICE_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// A Loader gives a command line parser the values of environment and file, and
// collects all that is wrong with them.
type Loader struct {
	env    map[string]string // without [envPrefix]
	known  []string          // all names, in the order of the grammar
	loaded bool
	path   string            // the settings file, "" for none
	file   map[string]entry  // what stands in it
	from   map[string]string // source of each value that was resolved
	faults Faults
}

// NewLoader returns a Loader for one parse. env has the form of [os.Environ].
func NewLoader(env []string) (*Loader, error) {
	l := &Loader{env: make(map[string]string), file: make(map[string]entry), from: make(map[string]string)}
	for _, line := range env {
		if name, value, ok := strings.Cut(line, "="); ok && strings.HasPrefix(name, envPrefix) {
			l.env[name] = value
		}
	}
	var all struct{ Settings }
	parser, err := kong.New(&all, append(l.decoders(), kong.NoDefaultHelp())...)
	if err != nil {
		return nil, fmt.Errorf("settings grammar: %w", err)
	}
	for _, flag := range parser.Model.Flags {
		l.known = append(l.known, flag.Name)
	}
	return l, nil
}

// EnvName gives the name of a setting in the environment.
func EnvName(setting string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(setting))
}

// Names lists all settings in the order of the grammar.
func (l *Loader) Names() []string { return slices.Clone(l.known) }

// Path is the settings file that was read, or "".
func (l *Loader) Path() string { return l.path }

// Options are what the parser needs to know of the settings.
func (l *Loader) Options() []kong.Option {
	return append(l.decoders(), kong.Resolvers(l))
}

// Faults is what was wrong with the text of the values, in the order of the grammar.
func (l *Loader) Faults() Faults {
	faults := slices.Clone(l.faults)
	place := func(f Fault) int {
		if i := slices.Index(l.known, f.Setting); i >= 0 {
			return i
		}
		return len(l.known)
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return place(a) - place(b) })
	return faults
}

// Validate is there for [kong.Resolver]; what it could find, Resolve has found.
func (l *Loader) Validate(*kong.Application) error { return nil }

// Resolve gives a flag that does not stand on the command line the value of the
// environment or else of the file.
func (l *Loader) Resolve(ctx *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if !l.loaded {
		l.loaded = true
		l.load(ctx)
	}
	if !slices.Contains(l.known, flag.Name) {
		return nil, nil
	}
	if text := l.env[EnvName(flag.Name)]; text != "" {
		l.from[flag.Name] = sourceEnv
		return text, nil
	}
	if e, ok := l.file[flag.Name]; ok && e.text != "" {
		l.from[flag.Name] = fmt.Sprintf("%s:%d", l.path, e.line)
		return e.text, nil
	}
	return nil, nil
}

// load reads the file that flag or environment name, if the command has settings
// at all.
func (l *Loader) load(ctx *kong.Context) {
	i := slices.IndexFunc(ctx.Flags(), func(f *kong.Flag) bool { return f.Name == "config" })
	if i < 0 {
		return
	}
	l.checkEnvironment()
	source := sourceFlag
	l.path, _ = ctx.FlagValue(ctx.Flags()[i]).(string)
	if l.path == "" {
		l.path, source = l.env[EnvName("config")], sourceEnv
	}
	if l.path == "" {
		return
	}
	data, err := os.ReadFile(l.path)
	if err != nil {
		l.faults = append(l.faults, Fault{Setting: "config", Value: l.path, Source: source, Want: reason(err)})
		return
	}
	entries, faults := parseFile(l.path, data)
	l.faults = append(l.faults, faults...)
	for _, e := range entries {
		if e.name == "config" || !slices.Contains(l.known, e.name) {
			l.unknown(e.name, fmt.Sprintf("%s:%d", l.path, e.line), nearest(e.name, l.known))
			continue
		}
		l.file[e.name] = e
	}
}

// checkEnvironment finds variables that look like settings and are none.
func (l *Loader) checkEnvironment() {
	names := make([]string, len(l.known))
	for i, k := range l.known {
		names[i] = EnvName(k)
	}
	for name := range l.env {
		if !slices.Contains(names, name) && !kubernetesVariable.MatchString(name) {
			l.unknown(name, sourceEnv, nearest(name, names))
		}
	}
}

// unknown reports a name without its value, which may be a secret in a wrong place.
func (l *Loader) unknown(name, source, meant string) {
	want := "no such setting"
	if meant != "" {
		want += fmt.Sprintf("; did you mean %s?", meant)
	}
	for _, k := range l.known {
		if k == name+"-file" || EnvName(k) == name+"_FILE" {
			want = "no such setting: secrets are read from files only, see " + k
		}
	}
	l.faults = append(l.faults, Fault{Setting: name, Source: source, Want: want})
}

// mapper makes a decoder into what the parser takes. A bad value of a setting is
// collected and parsing goes on; a bad value of anything else is the parser's error.
func (l *Loader) mapper(kind reflect.Type, decode decoder) kong.Option {
	return kong.TypeMapper(kind, kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
		token, err := ctx.Scan.PopValue("value")
		if err != nil {
			return err
		}
		text := fmt.Sprint(token.Value)
		err = decode(text, ctx.Value.Tag, target)
		switch name := ctx.Value.Name; {
		case err == nil:
			return nil
		case slices.Contains(l.known, name):
			l.reject(name, text, err.Error())
			return nil
		default:
			return fmt.Errorf("%q: %w", text, err)
		}
	}))
}

func (l *Loader) reject(name, text, want string) {
	source := l.from[name]
	if source == "" {
		source = sourceFlag
	}
	l.faults = append(l.faults, Fault{Setting: name, Value: text, Source: source, Want: want})
}

// A Value is one setting as it is in force.
type Value struct {
	Setting string `json:"setting"`
	Text    string `json:"value"`
	Source  string `json:"source"`
	// Reloads says that another value takes effect without a restart. The grammar has it
	// in the tag reload.
	Reloads bool `json:"-"`
}

// Effective lists what is in force and where it came from, for the settings that
// the parsed command has. No secret is in it, since no setting is one.
func (l *Loader) Effective(ctx *kong.Context) []Value {
	var values []Value
	for _, flag := range ctx.Flags() {
		if !slices.Contains(l.known, flag.Name) {
			continue
		}
		values = append(values, Value{flag.Name, settingText(flag.Target), l.source(ctx, flag), flag.Tag.Has("reload")})
	}
	return values
}

// Source tells where the value of a setting came from.
func (l *Loader) source(ctx *kong.Context, flag *kong.Flag) string {
	for _, p := range ctx.Path {
		if p.Flag == flag && !p.Resolved {
			return sourceFlag
		}
	}
	if source := l.from[flag.Name]; source != "" {
		return source
	}
	return sourceDefault
}
