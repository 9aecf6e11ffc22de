package testkit

import (
	"bytes"
	"fmt"
	"math/rand/v2"
)

// TrackerFile gives a script of at least size bytes, the same each time, that looks
// to an edge as Matomo's matomo.js does: its footer, its density, and how well it can
// be compressed. It does nothing.
func TrackerFile(size int) []byte {
	const footer = "/*! @license-end */\n"
	var b bytes.Buffer
	b.WriteString("/*! filler of sluice's tests */\n/*! @license-start */\n(function(){var w={};")
	rng := rand.New(rand.NewPCG(1, 66))
	words := make([]string, 400)
	for i := range words {
		words[i] = word(rng)
	}
	pick := func() string { return words[min(rng.IntN(len(words)), rng.IntN(len(words)))] }
	for b.Len() < size-len(footer) {
		a, c := pick(), word(rng)
		fmt.Fprintf(&b, "w.%s=function(%c,%c){if(%c.%s!==%d){return %c.%s(w.%s,\"%s\")}%c.%s=%c};", c,
			'a'+rng.IntN(13), 'n'+rng.IntN(13), 'a'+rng.IntN(13), a, rng.IntN(4096), 'n'+rng.IntN(13), pick(), pick(), word(rng), 'a'+rng.IntN(13), pick(), 'n'+rng.IntN(13))
	}
	b.WriteString("})();\n" + footer)
	return b.Bytes()
}

func word(rng *rand.Rand) string {
	w := make([]byte, 4+rng.IntN(10))
	for i := range w {
		w[i] = 'a' + byte(min(rng.IntN(26), rng.IntN(26)))
	}
	return string(w)
}
