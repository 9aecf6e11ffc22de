<?php
// Reads one text a line, in base64, and answers what strtotime makes of it at the
// moment that the first argument names.
date_default_timezone_set('UTC');
while (($line = fgets(STDIN)) !== false) {
    $t = strtotime(base64_decode(trim($line)), (int) $argv[1]);
    echo $t === false ? '-' : $t, "\n";
}
