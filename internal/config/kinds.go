package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// A ByteSize is a number of bytes. It is written with a unit: B, KiB, MiB, GiB,
// TiB, PiB, or the decimal kB, MB, GB, TB, PB.
type ByteSize int64

// A byteUnit is a unit in which a [ByteSize] may be written.
type byteUnit struct {
	name string
	size int64
}

// byteUnits has the binary units first and largest first, as [ByteSize.String]
// tries them, and B, the end of all others, last.
var byteUnits = []byteUnit{
	{"PiB", 1 << 50}, {"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"PB", 1e15}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// String writes s with the largest binary unit that gives a whole number.
func (s ByteSize) String() string {
	if s == 0 {
		return "0"
	}
	for _, u := range byteUnits {
		if strings.Contains(u.name, "i") && int64(s)%u.size == 0 {
			return strconv.FormatInt(int64(s)/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// ParseByteSize reads a number with a unit, for example "2GiB" or "1.5 MB". Only 0
// may stand without a unit.
func ParseByteSize(text string) (ByteSize, error) {
	text = strings.TrimSpace(text)
	if text == "0" {
		return 0, nil
	}
	for _, u := range byteUnits {
		digits, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if err != nil || math.IsNaN(n) || n < 0 {
			break
		}
		if n *= float64(u.size); n < math.MaxInt64 {
			return ByteSize(n), nil
		}
		break
	}
	return 0, errors.New("want a number with a unit, such as 512KiB or 2GiB")
}

// decoders is one mapper a kind of setting. Each reads the text of one value and
// returns what is wrong with it; the ranges stand in the tags of the grammar.
func (l *Loader) decoders() []kong.Option {
	return []kong.Option{
		l.mapper(reflect.TypeFor[ByteSize](), decodeByteSize),
		l.mapper(reflect.TypeFor[time.Duration](), decodeDuration),
		l.mapper(reflect.TypeFor[int](), decodeInt),
		l.mapper(reflect.TypeFor[Choice](), decodeChoice),
		l.mapper(reflect.TypeFor[Address](), decodeAddress),
		l.mapper(reflect.TypeFor[URL](), decodeURL),
		l.mapper(reflect.TypeFor[[]Prefix](), decodePrefixes),
		l.mapper(reflect.TypeFor[[]Host](), decodeHosts),
		l.mapper(reflect.TypeFor[[]Domain](), decodeDomains),
		l.mapper(reflect.TypeFor[[]HeaderName](), decodeHeaderNames),
		l.mapper(reflect.TypeFor[[]ResponseHeader](), decodeResponseHeaders),
	}
}

// A decoder reads text into target.
type decoder func(text string, tag *kong.Tag, target reflect.Value) error

func decodeByteSize(text string, tag *kong.Tag, target reflect.Value) error {
	size, err := ParseByteSize(text)
	low, _ := ParseByteSize(tag.Get("min"))
	high, _ := ParseByteSize(tag.Get("max"))
	switch {
	case err != nil:
		return err
	case size == 0 && tag.Get("zero") != "":
	case size < low || size > high:
		if zero := tag.Get("zero"); zero != "" {
			return fmt.Errorf("want 0 (%s), or %v to %v", zero, low, high)
		}
		return fmt.Errorf("want %v to %v", low, high)
	}
	target.SetInt(int64(size))
	return nil
}

func decodeDuration(text string, tag *kong.Tag, target reflect.Value) error {
	d, err := time.ParseDuration(text)
	low, _ := time.ParseDuration(tag.Get("min"))
	high, _ := time.ParseDuration(tag.Get("max"))
	if err != nil {
		return fmt.Errorf("want a number with a unit, such as 10s, from %s to %s", tag.Get("min"), tag.Get("max"))
	}
	zero := tag.Get("zero")
	switch {
	case d == 0 && zero != "":
	case zero != "" && (d < low || d > high):
		return fmt.Errorf("want 0 (%s), or %s to %s", zero, tag.Get("min"), tag.Get("max"))
	case d < low || d > high:
		return fmt.Errorf("want %s to %s", tag.Get("min"), tag.Get("max"))
	}
	target.SetInt(int64(d))
	return nil
}

func decodeInt(text string, tag *kong.Tag, target reflect.Value) error {
	n, err := strconv.Atoi(text)
	low, _ := strconv.Atoi(tag.Get("min"))
	high, _ := strconv.Atoi(tag.Get("max"))
	if err != nil || n < low || n > high {
		return fmt.Errorf("want a whole number from %d to %d", low, high)
	}
	target.SetInt(int64(n))
	return nil
}

func decodeChoice(text string, tag *kong.Tag, target reflect.Value) error {
	words := strings.Split(tag.Get("oneof"), ",")
	if !slices.Contains(words, text) {
		return fmt.Errorf("want %s", orList(words))
	}
	target.SetString(text)
	return nil
}

// orList joins words as "a, b or c".
func orList(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func decodeAddress(text string, _ *kong.Tag, target reflect.Value) error {
	if text == "" || text == "off" {
		target.SetString("")
		return nil
	}
	const want = "want HOST:PORT or :PORT, with a port from 0 to 65535, or off"
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return errors.New(want)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errors.New(want)
	}
	if host != "" && !validHost(host) {
		return errors.New(want)
	}
	target.SetString(text)
	return nil
}

func decodeURL(text string, _ *kong.Tag, target reflect.Value) error {
	if text == "" {
		target.SetZero()
		return nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("want an address such as https://stats.example.org/matomo")
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("want an address that begins with http:// or https://")
	case u.User != nil:
		return errors.New("want an address without a user and a password")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("want an address without ? and #: only Matomo's base")
	case u.Hostname() == "" || !validHost(u.Hostname()):
		return errors.New("want an address with a host, such as https://stats.example.org/matomo")
	case strings.HasSuffix(u.Path, ".php"):
		return errors.New("want Matomo's base address, without matomo.php or index.php")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	target.Set(reflect.ValueOf(URL{u}))
	return nil
}

// decodePrefixes adds to what the flag gave before.
func decodePrefixes(text string, _ *kong.Tag, target reflect.Value) error {
	list := target.Interface().([]Prefix)
	for part := range splitList(text) {
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			addr, err := netip.ParseAddr(part)
			if err != nil || addr.Zone() != "" {
				return fmt.Errorf("%q: want addresses or ranges such as 10.0.0.0/8, parted by commas", part)
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		if prefix != prefix.Masked() {
			return fmt.Errorf("%q has bits behind its mask: want %v", part, prefix.Masked())
		}
		list = append(list, Prefix(prefix))
	}
	target.Set(reflect.ValueOf(list))
	return nil
}

// decodeHosts adds to what the flag gave before.
func decodeHosts(text string, _ *kong.Tag, target reflect.Value) error {
	list := target.Interface().([]Host)
	for part := range splitList(text) {
		if !validHost(part) {
			return fmt.Errorf("%q: want host names without ports, parted by commas", part)
		}
		list = append(list, Host(strings.ToLower(part)))
	}
	target.Set(reflect.ValueOf(list))
	return nil
}

// decodeDomains adds to what the flag gave before.
func decodeDomains(text string, _ *kong.Tag, target reflect.Value) error {
	list := target.Interface().([]Domain)
	for part := range splitList(text) {
		name := strings.ToLower(part)
		bare, pattern := strings.CutPrefix(name, "*.")
		if _, err := netip.ParseAddr(bare); err == nil || !validHost(bare) || strings.HasSuffix(bare, ".") || strings.Contains(bare, "_") ||
			pattern && !strings.Contains(bare, ".") {
			return fmt.Errorf("%q: want host names such as stats.example.org, parted by commas", part)
		}
		list = append(list, Domain(name))
	}
	target.Set(reflect.ValueOf(list))
	return nil
}

// splitList yields the parts of a list parted by commas, without empty ones.
func splitList(text string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" && !yield(part) {
				return
			}
		}
	}
}

// maxHost is the longest name that DNS carries.
const maxHost = 253

// validHost reports whether s can be a host name or an address.
func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if len(s) > maxHost || s == "" || s[0] == '-' || s[0] == '.' {
		return false
	}
	for _, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}
