package testkit

const loginPage = `<title>Sign in</title>
<form method="post" action="index.php?module=Login">
<input name="name"><input name="password" type="password"><button>Sign in</button>
</form>
`

// homePage takes the number of reports.
const homePage = `<title>Home</title>
<a id="export" href="index.php?module=Export">Export</a>
<ul></ul>
<script>
for (let n = 1; n <= %d; n++) {
	fetch("index.php?module=Report&n=" + n).then(r => r.json()).then(report => {
		const li = document.createElement("li");
		li.textContent = report.n + ": " + report.visits;
		document.querySelector("ul").append(li);
	});
}
</script>
`

const livePage = `<title>Live</title>
<p id="socket"></p><p id="events"></p>
<script>
const socket = new WebSocket("wss://" + location.host + "/index.php?module=Live&action=socket");
socket.onopen = () => socket.send("grüße");
socket.onmessage = e => {
	document.getElementById("socket").textContent += e.data + ";";
	if (e.data === "grüße") socket.send("again"); else socket.close(1000);
};
socket.onclose = e => document.getElementById("socket").textContent += e.code + (e.wasClean ? " clean" : " torn");
const events = new EventSource("index.php?module=Live&action=stream");
events.onmessage = e => {
	document.getElementById("events").textContent += e.data + ";";
	if (e.data === "end") events.close(); else fetch("index.php?module=Live&action=seen&n=" + e.data);
};
</script>
`

const optOutHost = `<title>Privacy</title>
<div id="matomo-opt-out"></div>
<script src="index.php?module=CoreAdminHome&amp;action=optOutJS&amp;divId=matomo-opt-out"></script>
<iframe src="index.php?module=CoreAdminHome&amp;action=optOut&amp;language=en"></iframe>
`

// optOutForm takes what the visitor is told.
const optOutForm = `<title>Opt out</title>
<p>%s</p>
<form method="post" action="index.php?module=CoreAdminHome&amp;action=optOut&amp;language=en">
<input type="hidden" name="nonce" value="n"><button>Change</button>
</form>
`

// shopPage takes Matomo's address, the preview's element, that address twice, and the
// name of the run.
const shopPage = `<title>Shop</title>
<script src="%s/js/container_abcdefgh.js"></script>
%s
<script src="%s/matomo.js"></script>
<script>
if (window.FakeTracker) FakeTracker("%s", "%s");
</script>
`

// trackerScript sends hits in all the ways that browsers have. Its last comment is what
// Sluice takes for the end of a whole tracker.
const trackerScript = `/*! @license-start of a tracker for tests */
(function () {
	"use strict";
	window.FakeTracker = function (base, run) {
		var to = base + "/matomo.php", form = "application/x-www-form-urlencoded; charset=utf-8";
		function hit(name) {
			return "idsite=1&rec=1&url=" + encodeURIComponent(location.origin + "/" + name + "?ä=1") + "&tkmark=" + run + "-" + name;
		}
		function post(body) {
			var x = new XMLHttpRequest();
			x.open("POST", to, true);
			x.setRequestHeader("Content-Type", form);
			x.send(body);
		}
		navigator.sendBeacon(to, new Blob([hit("beacon") + "&send_image=0"], {type: form}));
		post(hit("xhr"));
		new Image().src = to + "?" + hit("image");
		post(JSON.stringify({requests: ["?" + hit("bulk1"), "?" + hit("bulk2")]}));
	};
}());
/*! @license-end */
`

const containerScript = `(function () {
	window.MatomoTagManager = {container: "abcdefgh"};
}());
`

const previewScript = `(function () {
	window.MatomoTagManager = {container: "preview"};
}());
`
