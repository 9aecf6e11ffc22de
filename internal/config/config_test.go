package config_test

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"sluice/internal/config"
)

// loaded is what one command line made of the settings.
type loaded struct {
	config.Settings
	loader   *config.Loader
	secrets  config.Secrets
	faults   config.Faults
	warnings config.Faults
	values   map[string]config.Value
}

// load parses args and env as a command with all settings does.
func load(t *testing.T, args, env []string) loaded {
	t.Helper()
	loader, err := config.NewLoader(env)
	if err != nil {
		t.Fatal(err)
	}
	var grammar struct{ config.Settings }
	parser, err := kong.New(&grammar, append(loader.Options(), kong.Writers(io.Discard, io.Discard))...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, err := parser.Parse(args)
	if err != nil {
		t.Fatal(err)
	}
	grammar.Complete(env)
	l := loaded{loader: loader, values: make(map[string]config.Value)}
	l.secrets, l.faults, l.warnings = loader.Check(ctx, &grammar.Settings)
	l.Settings = grammar.Settings
	for _, v := range loader.Effective(ctx) {
		l.values[v.Setting] = v
	}
	return l
}

func write(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

const url = "--matomo.url=https://stats.example.org"

func TestDefaultsNeedOnlyMatomosAddress(t *testing.T) {
	l := load(t, []string{url}, nil)
	if len(l.faults) > 0 || len(l.warnings) > 0 {
		t.Fatalf("faults %v, warnings %v, want none", l.faults, l.warnings)
	}
	if l.DataDir != "./sluice-data" || l.Listen != ":8443" || l.ListenHTTP != "" || l.Admin.Listen != "127.0.0.1:8444" {
		t.Errorf("got %q %q %q %q", l.DataDir, l.Listen, l.ListenHTTP, l.Admin.Listen)
	}
	if l.EdgeID == "" || l.Queue.Reserve != 0 || l.Sink.BatchBytes != 512<<10 {
		t.Errorf("got edge %q, reserve %v, batch bytes %v", l.EdgeID, l.Queue.Reserve, l.Sink.BatchBytes)
	}
}

// Scripts use these names: they are never renamed, and never missing.
func TestStableNamesExist(t *testing.T) {
	names := load(t, []string{url}, nil).loader.Names()
	for _, name := range strings.Fields(`edge.id listen listen-http admin.listen admin.token-file data-dir matomo.url matomo.token-file
		mysql.dsn-file mysql.tables-prefix mysql.reader-dsn-file tls.mode tls.domains tls.acme-ca tls.acme-email tls.cert-file tls.key-file proxy.trusted
		proxy.expose queue.encryption-key-file queue.reserve queue.max-size sink.lanes sink.batch-hits sink.on-unknown gate.skew log.format log.level shutdown.delay`) {
		if !slices.Contains(names, name) {
			t.Errorf("setting %s is missing", name)
		}
	}
}

func TestFlagOverEnvironmentOverFileOverDefault(t *testing.T) {
	file := write(t, "sluice.yaml", "matomo.url: https://file.example\nsink.lanes: 2\nsink.batch-hits: 3\nsink:\n  probe-interval: 7s\n", 0o644)
	env := []string{"SLUICE_CONFIG=" + file, "SLUICE_SINK_LANES=5", "SLUICE_SINK_BATCH_HITS=", "HOME=/root"}
	l := load(t, []string{"--sink.lanes=9"}, env)
	if len(l.faults) > 0 {
		t.Fatal(l.faults)
	}
	tests := []struct{ setting, value, source string }{
		{"sink.lanes", "9", "flag"},
		{"sink.batch-hits", "3", file + ":3"}, // an empty variable is none
		{"sink.probe-interval", "7s", file + ":5"},
		{"matomo.url", "https://file.example", file + ":1"},
		{"sink.on-unknown", "resend", "default"},
	}
	for _, tt := range tests {
		if got := l.values[tt.setting]; got.Text != tt.value || got.Source != tt.source {
			t.Errorf("%s is %q from %q, want %q from %q", tt.setting, got.Text, got.Source, tt.value, tt.source)
		}
	}
	if l = load(t, nil, env); l.Sink.Lanes != 5 {
		t.Errorf("without a flag lanes is %d, want 5 of the environment", l.Sink.Lanes)
	}
}

func TestAllFaultsAreReportedAtOnce(t *testing.T) {
	file := write(t, "sluice.yaml", "sink.lanes: 400\nsink.lane: 4\nlog: {format: xml}\nmatomo.token: 0123456789abcdef\nlisten: 80\n", 0o644)
	env := []string{"SLUICE_SINK_ONUNKNOWN=hold", "SLUICE_QUEUE_RESERVE=12"}
	l := load(t, []string{"--config=" + file, "--tls.mode=files", "--sink.probe-interval=1h", "--admin.listen=0.0.0.0:1"}, env)
	got := l.faults.Error()
	for _, want := range []string{
		"admin.listen: \"0.0.0.0:1\" (flag): others can reach it",
		"listen: \"80\" (" + file + ":5): want HOST:PORT",
		"matomo.url: is not set",
		"tls.cert-file: is not set", "tls.key-file: is not set",
		"queue.reserve: \"12\" (environment): want a number with a unit",
		"sink.lanes: \"400\" (" + file + ":1): want a whole number from 1 to 64",
		"sink.probe-interval: \"1h\" (flag): want 500ms to 10m",
		"log.format: \"xml\" (" + file + ":3): want auto, text or json",
		"sink.lane (" + file + ":2): no such setting; did you mean sink.lanes?",
		"matomo.token (" + file + ":4): no such setting: secrets are read from files only, see matomo.token-file",
		"SLUICE_SINK_ONUNKNOWN (environment): no such setting; did you mean SLUICE_SINK_ON_UNKNOWN?",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "0123456789abcdef") {
		t.Errorf("a misplaced token is shown:\n%s", got)
	}
	if n := strings.Count(got, "\n") + 1; n != 12 {
		t.Errorf("%d faults, want 12:\n%s", n, got)
	}
}

func TestKubernetesServiceVariablesAreNoSettings(t *testing.T) {
	l := load(t, []string{url}, []string{
		"SLUICE_SERVICE_HOST=10.0.0.1", "SLUICE_SERVICE_PORT=443", "SLUICE_SERVICE_PORT_HTTPS=443", "SLUICE_PORT=tcp://10.0.0.1:443",
		"SLUICE_PORT_443_TCP=tcp://10.0.0.1:443", "SLUICE_PORT_443_TCP_ADDR=10.0.0.1", "SLUICE_EDGE_SERVICE_HOST=10.0.0.1",
		"SLUICE_EDGE_PORT_443_TCP_PROTO=tcp",
	})
	if len(l.faults) > 0 {
		t.Errorf("got %v", l.faults)
	}
}

func TestValues(t *testing.T) {
	tests := []struct {
		name, arg string
		want      string // part of the fault; "" for none
	}{
		{"address with a base path is kept", "--matomo.url=http://m.example/a/b/", ""},
		{"address of an IPv6 host is good", "--matomo.url=http://[::1]:8080", ""},
		{"address without a scheme is refused", "--matomo.url=m.example", "http:// or https://"},
		{"address with a query is refused", "--matomo.url=http://m.example/?a=1", "without ? and #"},
		{"address with a password is refused", "--matomo.url=http://a:b@m.example/", "without a user"},
		{"address of a script is refused", "--matomo.url=http://m.example/matomo.php", "without matomo.php"},
		{"address without a host is refused", "--matomo.url=http:///x", "with a host"},
		{"address that cannot be read is refused", "--matomo.url=http://%zz", "want an address"},
		{"size in decimal units is good", "--queue.reserve=5GB", ""},
		{"size with a fraction is good", "--queue.reserve=1.5GiB", ""},
		{"size below the least is refused", "--queue.reserve=1MiB", "or 64MiB to 1TiB"},
		{"size that is not a number is refused", "--queue.reserve=NaNGiB", "want a number with a unit"},
		{"negative size is refused", "--queue.reserve=-1GiB", "want a number with a unit"},
		{"size beyond all disks is refused", "--queue.reserve=99999999PiB", "want a number with a unit"},
		{"no maximum size is good", "--queue.max-size=0", ""},
		{"tiny maximum size is refused", "--queue.max-size=1MiB", "want 0 (none), or 256MiB to 1PiB"},
		{"duration without a unit is refused", "--shutdown.delay=5", "want a number with a unit, such as 10s, from 0s to 10m"},
		{"negative duration is refused", "--shutdown.delay=-5s", "want 0s to 10m"},
		{"fraction where a whole number is wanted is refused", "--sink.lanes=1.5", "want a whole number"},
		{"single trusted address is good", "--proxy.trusted=10.1.2.3, 2001:db8::/32", ""},
		{"range with bits behind its mask is refused", "--proxy.trusted=10.1.2.3/8", "want 10.0.0.0/8"},
		{"mask of a whole address is good", "--proxy.mask-ip=4", ""},
		{"mask beyond an address is refused", "--proxy.mask-ip=5", "want a whole number from 0 to 4"},
		{"negative mask is refused", "--proxy.mask-ip=-1", "want a whole number from 0 to 4"},
		{"name instead of a range is refused", "--proxy.trusted=lb.example", "want addresses or ranges"},
		{"listener off is good", "--listen=off --listen-http=:80", ""},
		{"both listeners off are refused", "--listen=off", "want listen or listen-http"},
		{"port out of range is refused", "--listen=:70000", "want HOST:PORT"},
		{"admin listener off is refused", "--admin.listen=off", "want HOST:PORT"},
		{"admin listener with a bad port is one fault only", "--admin.listen=0.0.0.0:x", "want HOST:PORT or :PORT"},
		{"admin listener for others without anything is refused", "--admin.listen=0.0.0.0:8444", "want admin.token-file or admin.client-ca-file"},
		{"admin key that others can read is refused", "--admin.cert-file=/dev/null --admin.key-file=/dev/null", "others can use this file"},
		{"admin certificate without a key is refused", "--admin.cert-file=/dev/null", "want admin.cert-file and admin.key-file together"},
		{"client certificates without HTTPS are refused", "--admin.client-ca-file=/dev/null", "want admin.cert-file with it"},
		{"admin certificate that is not there is refused", "--admin.cert-file=/no/cert --admin.key-file=/proc/self/mem", "no such file or directory"},
		{"unknown word is refused", "--sink.on-unknown=drop", "want resend or hold"},
		{"two plain listeners are refused", "--tls.mode=off --listen-http=:80", "plain HTTP already"},
		{"bad edge name is refused", "--edge.id=a/b", "want 1 to 63"},
		{"cookie path is good", "--matomo.cookie-path=/matomo --matomo.cookie-domain=www.m.example", ""},
		{"cookie path that could end a header is refused", "--matomo.cookie-path=/a;b", "want a path"},
		{"cookie path without a slash is refused", "--matomo.cookie-path=a", "want a path"},
		{"cookie domain with a port is refused", "--matomo.cookie-domain=m.example:80", "want a host name"},
		{"third-party cookie in another word is refused", "--matomo.third-party-cookie=yes", "want off or on"},
		{"headers of plugins are good", "--sink.header-groups=X-Foo, cf-ipcountry", ""},
		{"header with an underscore is refused", "--sink.header-groups=X_Foo", "letters, digits and dashes"},
		{"header with a space is refused", "--sink.header-groups=X-Foo: 1, a", "letters, digits and dashes"},
		{"header with a secret is refused", "--sink.header-groups=Authorization", "may hold a secret"},
		{"header with a token is refused", "--sink.header-groups=X-Api-Token", "may hold a secret"},
		{"header with cookies is refused", "--sink.header-groups=Cookie", "may hold a secret"},
		{"header of the connection is refused", "--sink.header-groups=transfer-encoding", "want a header of your own"},
		{"header of the body is refused", "--sink.header-groups=Content-Length", "want a header of your own"},
		{"header with an address is refused", "--sink.header-groups=CF-Connecting-IP", "want a header of your own"},
		{"header of forwarding is refused", "--sink.header-groups=X-Forwarded-For", "want a header of your own"},
		{"header that travels with the hit anyway is refused", "--sink.header-groups=Sec-CH-UA-Model", "want a header of your own"},
		{"header that Sluice sets is refused", "--sink.header-groups=X-Visitor --sink.forward-header=x-visitor", "is sink.forward-header already"},
		{"too many headers are refused", "--sink.header-groups=a,b,c,d,e,f,g,h,i", "want at most 8"},
		{"prefix that could end a quotation is refused", "--mysql.tables-prefix=a`b", "letters, digits and underscores"},
		{"empty prefix is good", "--mysql.tables-prefix=", ""},
		{"missing file is refused", "--matomo.token-file=./no/such/file", "no such file"},
		{"folder instead of a file is refused", "--matomo.token-file=/", "is not a file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := []string{tt.arg}
			if !strings.Contains(tt.arg, ", ") {
				args = strings.Fields(tt.arg)
			}
			if !strings.Contains(tt.arg, "matomo.url") {
				args = append(args, url)
			}
			faults := load(t, args, nil).faults
			switch {
			case tt.want == "" && len(faults) > 0:
				t.Errorf("got %v, want none", faults)
			case tt.want != "" && (len(faults) != 1 || !strings.Contains(faults[0].Error(), tt.want)):
				t.Errorf("got %v, want one with %q", faults, tt.want)
			}
		})
	}
	if got := load(t, []string{"--matomo.url=http://m.example/a/b/"}, nil).Matomo.URL.String(); got != "http://m.example/a/b" {
		t.Errorf("base path became %q", got)
	}
}

func TestSystemdNamesTheDataDirectory(t *testing.T) {
	env := []string{"STATE_DIRECTORY=/var/lib/sluice:/var/lib/other"}
	if got := load(t, []string{url}, env).DataDir; got != "/var/lib/sluice" {
		t.Errorf("got %q, want /var/lib/sluice", got)
	}
	if got := load(t, []string{url, "--data-dir=/x"}, env).DataDir; got != "/x" {
		t.Errorf("a flag gave %q, want /x", got)
	}
}

func TestSecretFiles(t *testing.T) {
	tests := []struct {
		name, text    string
		mode          os.FileMode
		fault, warned string
	}{
		{"of the owner only is read", "  token\n", 0o600, "", ""},
		{"of owner and own group is read", "token", 0o640, "", ""},
		{"that others can read is refused", "token", 0o644, "others can use this file (mode 0644)", ""},
		{"that others can write is refused", "token", 0o602, "others can use this file (mode 0602)", ""},
		{"that the group can change is doubtful", "token", 0o660, "", "the group can change this file"},
		{"that is empty is refused", "\n", 0o600, "is empty", ""},
		{"with two lines is refused", "one\ntwo\n", 0o600, "want one line", ""},
		{"that is huge is refused", strings.Repeat("x", 20<<10), 0o600, "want at most 16KiB", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, "token", tt.text, tt.mode)
			l := load(t, []string{url, "--matomo.token-file=" + path}, nil)
			if got := l.faults.Error(); !strings.Contains(got, tt.fault) || (tt.fault == "") != (got == "") {
				t.Errorf("faults %q, want %q", got, tt.fault)
			}
			if got := l.warnings.Error(); !strings.Contains(got, tt.warned) || (tt.warned == "") != (got == "") {
				t.Errorf("warnings %q, want %q", got, tt.warned)
			}
			if tt.fault == "" && l.secrets.MatomoToken.Reveal() != "token" {
				t.Errorf("read %q", l.secrets.MatomoToken.Reveal())
			}
		})
	}
}

func TestKeyFiles(t *testing.T) {
	const hexKey = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF"
	const base64Key = "+/8iM0RVZneImaq7zN3u/wARIjNEVWZ3iJmqu8zd7v8="
	tests := []struct {
		name, text string
		mode       os.FileMode
		keys       int
		fault      string
	}{
		{"with one key is read", hexKey + "\n", 0o600, 1, ""},
		{"with several keys is read, comments and blank lines apart", "# new\n  " + base64Key + "\r\n\n#old\n" + hexKey, 0o640, 2, ""},
		{"that others can read is refused", hexKey, 0o644, 0, "others can use this file (mode 0644)"},
		{"with half a key is refused", "# x\n" + hexKey[:32], 0o600, 0, "line 2: want 32 random bytes"},
		{"with a longer key is refused", hexKey + "00", 0o600, 0, "line 1: want 32 random bytes"},
		{"with one bad digit is refused", hexKey[:63] + "g", 0o600, 0, "line 1: want 32 random bytes"},
		{"with 33 bytes in base64 is refused", strings.TrimSuffix(base64Key, "8=") + "///", 0o600, 0, "line 1: want 32 random bytes"},
		{"with the same key twice is refused", hexKey + "\n" + strings.ToLower(hexKey), 0o600, 0, "line 2: the same key stands above"},
		{"without a key is refused", "# none\n\n", 0o600, 0, "holds no key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := load(t, []string{url, "--queue.encryption-key-file=" + write(t, "key", tt.text, tt.mode)}, nil)
			if got := l.faults.Error(); !strings.Contains(got, tt.fault) || (tt.fault == "") != (got == "") {
				t.Errorf("faults %q, want %q", got, tt.fault)
			}
			if strings.Contains(l.faults.Error(), hexKey[:20]) {
				t.Errorf("a key is shown: %v", l.faults)
			}
			if len(l.secrets.QueueKeys) != tt.keys || len(l.warnings) > 0 {
				t.Fatalf("%d keys, warnings %v, want %d keys", len(l.secrets.QueueKeys), l.warnings, tt.keys)
			}
			for i, key := range l.secrets.QueueKeys {
				first := byte(0x00)
				if i == 0 && tt.keys == 2 {
					first = 0xfb
				}
				if raw := key.Reveal(); len(raw) != 32 || raw[0] != first || raw[31] != 0xff {
					t.Errorf("key %d is %x", i, raw)
				}
			}
		})
	}
}

func TestAKeyInTheDirectoryThatItProtectsIsDoubtful(t *testing.T) {
	path := write(t, "key", strings.Repeat("07", 32), 0o600)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Dir(path), link); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]int{filepath.Dir(path): 1, filepath.Dir(filepath.Dir(path)): 1, link: 1, t.TempDir(): 0, "/no/such/dir": 0} {
		l := load(t, []string{url, "--queue.encryption-key-file=" + path, "--data-dir=" + dir}, nil)
		if len(l.faults) > 0 || len(l.warnings) != want {
			t.Errorf("with the queue in %s: %v, %v", dir, l.faults, l.warnings)
		}
	}
}

func TestAForeignGroupOnASecretFileIsDoubtful(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file to a foreign group")
	}
	path := write(t, "token", "token", 0o640)
	if err := os.Chown(path, -1, 54321); err != nil {
		t.Fatal(err)
	}
	l := load(t, []string{url, "--matomo.token-file=" + path}, nil)
	if got := l.warnings.Error(); !strings.Contains(got, "a group that Sluice is not in") {
		t.Errorf("got %q", got)
	}
}

func TestASecretWrittenInPlaceOfItsFileIsNotShown(t *testing.T) {
	for _, arg := range []string{
		"--matomo.token-file=0123456789abcdef", "--mysql.dsn-file=sluice:geheim@tcp(db/x:3306)/matomo",
		"--queue.encryption-key-file=+/0123456789abcdef0123456789abcdef012345678A=",
	} {
		got := load(t, []string{url, arg}, nil).faults.Error()
		if !strings.Contains(got, "no such file") || strings.Contains(got, "0123456789abcdef") || strings.Contains(got, "geheim") {
			t.Errorf("got %q", got)
		}
	}
}

func TestASecretPrintsAsAPlaceholder(t *testing.T) {
	s := config.Secret("geheim")
	if s.String() != "(secret)" || strings.Contains(s.GoString(), "geheim") {
		t.Errorf("got %s, %#v", s, s)
	}
}

func TestTrustingEverybodyIsDoubtful(t *testing.T) {
	l := load(t, []string{url, "--proxy.trusted=0.0.0.0/0"}, nil)
	if len(l.warnings) != 1 || l.warnings[0].Setting != "proxy.trusted" {
		t.Errorf("got %v", l.warnings)
	}
}

func TestToolsWorkWhileOtherSettingsAreWrong(t *testing.T) {
	file := write(t, "sluice.yaml", "sink.lanes: 400\nadmin.listen: 127.0.0.1:9\n", 0o644)
	loader, err := config.NewLoader([]string{"SLUICE_SINK_LANES=0"})
	if err != nil {
		t.Fatal(err)
	}
	var grammar struct{ config.Client }
	parser, err := kong.New(&grammar, loader.Options()...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, err := parser.Parse([]string{"--config=" + file, "--queue.encryption-key-file=/no/such/file"})
	if err != nil {
		t.Fatal(err)
	}
	if _, faults := loader.CheckClient(ctx, &grammar.Client); len(faults) > 0 {
		t.Errorf("got %v", faults)
	}
	if keys, faults := loader.CheckKeys(ctx, &grammar.Client); len(keys) > 0 || len(faults) != 1 || faults[0].Setting != "queue.encryption-key-file" {
		t.Errorf("got %d keys, %v", len(keys), faults)
	}
	if grammar.Admin.Listen != "127.0.0.1:9" {
		t.Errorf("got %q", grammar.Admin.Listen)
	}
}
