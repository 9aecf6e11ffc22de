<?php
// Reads one document a line, in base64. Answers "-" where json_decode fails,
// otherwise the type of the value and of each child with its key.
function describe($v) {
    if (is_string($v)) return 's' . base64_encode($v);
    if (is_array($v)) return 'a' . count($v);
    if (is_null($v)) return 'n';
    if (is_bool($v)) return $v ? 'T' : 'F';
    return 'd';
}
while (($line = fgets(STDIN)) !== false) {
    $raw = str_replace(["\n", "\r"], '', trim(base64_decode(trim($line))));
    $v = json_decode($raw, true);
    if (json_last_error() !== JSON_ERROR_NONE) { echo "-\n"; continue; }
    $out = describe($v);
    if (is_array($v)) foreach ($v as $key => $child) $out .= ' ' . base64_encode($key) . '=' . describe($child);
    echo $out, "\n";
}
