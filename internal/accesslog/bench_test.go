package accesslog

import "testing"

const benchQuery = "/matomo.php?action_name=Our%20Products%20-%20Example%20Shop&idsite=1&rec=1&r=483920&h=14&m=7&s=33" +
	"&url=https%3A%2F%2Fshop.example.org%2Fproducts%2Fgarden%2Fchairs%3Fcolour%3Dgreen%26page%3D2" +
	"&urlref=https%3A%2F%2Fwww.example.com%2Fsearch%3Fq%3Dgarden%2Bchairs&_id=6f2b3c4d5e6f7a8b&send_image=0&pdf=1" +
	"&cookie=1&res=1920x1080&pv_id=Ab3xYz&pf_net=12&pf_srv=134&pf_tfr=5&pf_dm1=220&pf_dm2=310&pf_onl=2"

const benchAgent = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36"

const benchCombined = `192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET ` + benchQuery + ` HTTP/1.1" 200 43 "https://shop.example.org/" "` + benchAgent + `"`

var benchmarks = []struct{ name, format, line string }{
	{"combined", "combined", benchCombined},
	{"combined/escapes", "combined", `192.0.2.7 - - [28/Nov/2026:12:45:52 +0000] "GET ` + benchQuery + `&q=\x22caf\xC3\xA9\x22 HTTP/1.1" 200 43 "-" "` + benchAgent + `"`},
	{"nginx-json", "nginx-json", `{"time":"2026-11-28T12:45:52+00:00","remote_addr":"192.0.2.7","request_method":"GET","request_uri":"` + benchQuery + `","status":200,"request_time":0.001,"http_user_agent":"` + benchAgent + `"}`},
	{"caddy", "caddy", `{"level":"info","ts":1795870295.3410554,"logger":"http.log.access","msg":"handled request","request":{"remote_ip":"192.0.2.7","remote_port":"50436","proto":"HTTP/1.1","method":"GET","host":"stats.example.org","uri":"` + benchQuery + `","headers":{"User-Agent":["` + benchAgent + `"]}},"duration":0.0009,"size":2,"status":200}`},
	{"haproxy", "haproxy", `192.0.2.7:39184 [28/Nov/2026:18:21:43.876] front back/s 0/0/0/0/0 200 124 - - ---- 1/1/0/0/0 0/0 "GET ` + benchQuery + ` HTTP/1.1"`},
	{"sluice", "sluice", `{"time":"2026-11-28T12:45:52.250Z","remote":"192.0.2.7","host":"stats.example.org","method":"GET","path":"/matomo.php","query":"` + benchQuery[12:] + `","proto":"HTTP/1.1","status":200,"bytes":43,"duration":0.000213,"user_agent":"` + benchAgent + `","handled":"tracking","hits":1}`},
}

func BenchmarkParse(b *testing.B) {
	for _, bb := range benchmarks {
		b.Run(bb.name, func(b *testing.B) {
			p := named(b, bb.format).NewParser()
			line := []byte(bb.line)
			b.SetBytes(int64(len(line)))
			b.ReportAllocs()
			var r Record
			for b.Loop() {
				if err := p.Parse(line, &r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestLinesAreReadWithoutMemoryOfTheirOwn(t *testing.T) {
	for _, bb := range benchmarks {
		p := named(t, bb.format).NewParser()
		line := []byte(bb.line)
		var r Record
		n := testing.AllocsPerRun(100, func() {
			if err := p.Parse(line, &r); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations a line, want none", bb.name, n)
		}
	}
}
