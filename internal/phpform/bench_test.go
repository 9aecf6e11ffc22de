package phpform

import (
	"strings"
	"testing"
)

// typicalQuery is what matomo.js sends for a page view.
const typicalQuery = "action_name=Our%20Products%20-%20Example%20Shop&idsite=1&rec=1&r=483920&h=14&m=7&s=33" +
	"&url=https%3A%2F%2Fshop.example.org%2Fproducts%2Fgarden%2Fchairs%3Fcolour%3Dgreen%26page%3D2" +
	"&urlref=https%3A%2F%2Fwww.example.com%2Fsearch%3Fq%3Dgarden%2Bchairs&_id=6f2b3c4d5e6f7a8b&_idn=0" +
	"&send_image=0&_refts=1700000000&_ref=https%3A%2F%2Fwww.example.com%2F&pdf=1&qt=0&realp=0&wma=0&fla=0&java=0" +
	"&ag=0&cookie=1&res=1920x1080&dimension1=member&dimension2=de&pv_id=Ab3xYz&pf_net=12&pf_srv=134&pf_tfr=5" +
	"&pf_dm1=220&pf_dm2=310&pf_onl=2&uadata=%7B%22mobile%22%3Afalse%7D"

func BenchmarkPairs(b *testing.B) {
	query := []byte(typicalQuery)
	b.SetBytes(int64(len(query)))
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for p := range Pairs(query) {
			n += len(p.Name)
		}
		if n == 0 {
			b.Fatal("no names")
		}
	}
}

func BenchmarkParse(b *testing.B) {
	benchmarks := []struct{ name, query string }{
		{"typical", typicalQuery},
		{"mangled", strings.Repeat("a%5B0%5D%5Bx.y%5D=1&to.ken=2&", 15)},
		{"pairs=1000", numbered("v", MaxVars)},
		{"empty=100000", strings.Repeat("&", 100000)},
		{"brackets=100000", strings.Repeat("[", 100000)},
	}
	for _, bb := range benchmarks {
		b.Run(bb.name, func(b *testing.B) {
			query := []byte(bb.query)
			b.SetBytes(int64(len(query)))
			b.ReportAllocs()
			for b.Loop() {
				Parse(query)
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	benchmarks := []struct{ name, query string }{
		{"typical", typicalQuery},
		{"pairs=1000", typicalQuery + "&" + numbered("v", MaxVars)},
	}
	for _, bb := range benchmarks {
		b.Run(bb.name, func(b *testing.B) {
			form := Parse([]byte(bb.query))
			b.ReportAllocs()
			for b.Loop() {
				form.Int("idsite", 0)
				form.Int("rec", 0)
				form.String("_id")
				form.Kind("cip")
				form.Kind("token_auth")
			}
		})
	}
}

func BenchmarkMerge(b *testing.B) {
	benchmarks := []struct{ name, get, post string }{
		{"typical", "idsite=1&rec=1", typicalQuery},
		{"pairs=1000", numbered("v", MaxVars), numbered("v", MaxVars)},
		{"pairs=1000/distinct", numbered("v", MaxVars), numbered("w", MaxVars)},
	}
	for _, bb := range benchmarks {
		b.Run(bb.name, func(b *testing.B) {
			get, post := []byte(bb.get), []byte(bb.post)
			b.SetBytes(int64(len(get) + len(post)))
			b.ReportAllocs()
			for b.Loop() {
				Merge(get, post)
			}
		})
	}
}

func BenchmarkAppendReencoded(b *testing.B) {
	query := []byte(typicalQuery)
	b.SetBytes(int64(len(query)))
	b.ReportAllocs()
	var dst []byte
	for b.Loop() {
		dst = AppendReencoded(dst[:0], query)
	}
}
