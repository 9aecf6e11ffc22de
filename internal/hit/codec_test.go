package hit

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one")
	updateFlag = flag.Bool("update", false, "write fixtures that are not there yet; those of a frozen version are never written again")
)

const fixtures = "../../testdata/hits/v1"

func randomText(r *rand.Rand) string {
	b := make([]byte, r.IntN(40))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func randomEnvironment(r *rand.Rand) Environment {
	return Environment{
		ClientIP: randomText(r), UserAgent: randomText(r), AcceptLanguage: randomText(r), Referer: randomText(r),
		ClientHints: randomText(r), VisitorCookie: randomText(r), Headers: randomText(r), DoNotTrack: r.IntN(2) == 0, DataSaver: r.IntN(2) == 0,
	}
}

func randomHit(r *rand.Rand) Hit {
	return Hit{
		Form: Form(r.IntN(2)), Rights: Rights(r.IntN(2)), Params: []byte(randomText(r)), Token: randomText(r),
		Site: int64(r.Uint64()), At: int64(r.Uint64()),
	}
}

func randomSet(r *rand.Rand) *RequestSet {
	s := &RequestSet{ReceivedAt: int64(r.Uint64()), Environment: randomEnvironment(r), Hits: make([]Hit, r.IntN(6))}
	for i := range s.Hits {
		s.Hits[i] = randomHit(r)
	}
	return s
}

func TestARequestSetIsReadAsItWasWritten(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		a, b := randomSet(r), randomSet(r)
		encoded := AppendRequestSet(AppendRequestSet(nil, a), b)
		for _, want := range []*RequestSet{a, b} {
			var got *RequestSet
			var err error
			got, encoded, err = DecodeRequestSet(encoded)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("got %+v, %v, want %+v", got, err, want)
			}
		}
		if len(encoded) != 0 {
			t.Fatalf("%d bytes left", len(encoded))
		}
		l := &DeadLetter{
			ID: ID{r.Uint64(), r.Uint64(), r.Uint32()}, ReceivedAt: int64(r.Uint64()), BuriedAt: int64(r.Uint64()),
			Environment: randomEnvironment(r), Hit: randomHit(r), Reason: randomText(r), Status: r.IntN(1000), Answer: []byte(randomText(r)),
		}
		got, err := DecodeDeadLetter(AppendDeadLetter(nil, l))
		if err != nil || !reflect.DeepEqual(got, l) {
			t.Fatalf("got %+v, %v, want %+v", got, err, l)
		}
	}
}

func TestEveryCutIsNoticed(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	set, letter := AppendRequestSet(nil, randomSet(r)), AppendDeadLetter(nil, &DeadLetter{Hit: randomHit(r)})
	for i := range set {
		if _, _, err := DecodeRequestSet(set[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("request set cut at %d: %v, want ErrCorrupt", i, err)
		}
	}
	for i := range letter {
		if _, err := DecodeDeadLetter(letter[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("dead letter cut at %d: %v, want ErrCorrupt", i, err)
		}
	}
	if _, err := DecodeDeadLetter(append(letter, 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("dead letter with a byte behind it: %v, want ErrCorrupt", err)
	}
}

func TestALengthThatCannotBeIsNotAllocated(t *testing.T) {
	empty := AppendRequestSet(nil, &RequestSet{})
	head := empty[:len(empty)-1] // without the number of hits
	huge := binary.AppendUvarint(bytes.Clone(head), math.MaxUint32)
	huge = append(huge, make([]byte, 1000)...)
	n := testing.AllocsPerRun(1, func() {
		if _, _, err := DecodeRequestSet(huge); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%v, want ErrCorrupt", err)
		}
	})
	if n > 20 {
		t.Errorf("%v allocations", n)
	}
}

// fixture is one frozen encoding.
type fixture struct {
	name   string
	value  any
	encode func() []byte
	decode func([]byte) (any, error)
}

func fixturesV1() []fixture {
	set := &RequestSet{
		ReceivedAt: 1_790_000_000_123_456_789,
		Environment: Environment{
			ClientIP: "2001:db8::7", UserAgent: "Mozilla/5.0 (ä)", AcceptLanguage: "de-DE,de;q=0.8", Referer: "https://example.org/?a=b",
			ClientHints: `{"HTTP_SEC_CH_UA":"\"Chromium\";v=\"130\""}`, VisitorCookie: "0123456789abcdef", Headers: "x-foo: 1\n", DoNotTrack: true, DataSaver: true,
		},
		Hits: []Hit{
			{Params: []byte("idsite=1&rec=1&url=https%3A%2F%2Fexample.org%2F%ff"), Site: 1, At: 1_790_000_000},
			{Form: Object, Rights: Theirs, Params: []byte(`{"idsite":2,"rec":1,"token_auth":"x"}`), Token: "x", Site: -2, At: -1},
		},
	}
	letter := &DeadLetter{
		ID: ID{Generation: 0x5f3a9c1e2b7d4a60, Block: 1042, Index: 7}, ReceivedAt: set.ReceivedAt, BuriedAt: set.ReceivedAt + 5e9,
		Environment: set.Environment, Hit: set.Hits[1], Reason: "poison", Status: 400, Answer: []byte("no\x00\xff"),
	}
	decodeSet := func(b []byte) (any, error) {
		s, rest, err := DecodeRequestSet(b)
		if err == nil && len(rest) != 0 {
			err = ErrCorrupt
		}
		return s, err
	}
	return []fixture{
		{"requestset", set, func() []byte { return AppendRequestSet(nil, set) }, decodeSet},
		{"requestset-empty", &RequestSet{Hits: []Hit{}}, func() []byte { return AppendRequestSet(nil, &RequestSet{}) }, decodeSet},
		{"deadletter", letter, func() []byte { return AppendDeadLetter(nil, letter) }, func(b []byte) (any, error) { return DecodeDeadLetter(b) }},
	}
}

// TestTheBytesOfVersion1AreFrozen: they are read as what they were written from,
// and what is written today is the same bytes.
func TestTheBytesOfVersion1AreFrozen(t *testing.T) {
	for _, f := range fixturesV1() {
		t.Run(f.name, func(t *testing.T) {
			path := filepath.Join(fixtures, f.name+".bin")
			want, err := os.ReadFile(path)
			if os.IsNotExist(err) && *updateFlag {
				want = f.encode()
				if err = os.MkdirAll(fixtures, 0o755); err == nil {
					err = os.WriteFile(path, want, 0o600)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := f.encode(); !bytes.Equal(got, want) {
				t.Errorf("encoded as %x, want %x", got, want)
			}
			got, err := f.decode(want)
			if err != nil || !reflect.DeepEqual(got, f.value) {
				t.Errorf("decoded as %s, %v, want %s", text(got), err, text(f.value))
			}
		})
	}
}

func text(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

func FuzzDecodeRequestSet(f *testing.F) {
	for _, x := range fixturesV1() {
		f.Add(x.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, rest, err := DecodeRequestSet(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v is not ErrCorrupt", err)
			}
			return
		}
		again, tail, err := DecodeRequestSet(append(AppendRequestSet(nil, s), rest...))
		if err != nil || !reflect.DeepEqual(again, s) || !bytes.Equal(tail, rest) {
			t.Errorf("encoded again: %+v, %v, want %+v", again, err, s)
		}
	})
}

func FuzzDecodeDeadLetter(f *testing.F) {
	for _, x := range fixturesV1() {
		f.Add(x.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := DecodeDeadLetter(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v is not ErrCorrupt", err)
			}
			return
		}
		if again, err := DecodeDeadLetter(AppendDeadLetter(nil, l)); err != nil || !reflect.DeepEqual(again, l) {
			t.Errorf("encoded again: %+v, %v, want %+v", again, err, l)
		}
	})
}
