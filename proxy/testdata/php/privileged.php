<?php
// Reads one query a line, in base64. Answers 1 when Matomo would want a token for
// it, 0 otherwise. The reading is that of core/Common.php, getRequestVar.
function text($v) {
    if ($v === null || (!is_array($v) && strlen($v) === 0) || is_array($v) || is_bool($v)) return '';
    if (is_numeric($v)) return (string) $v;
    return htmlspecialchars(str_replace("\x00", '', html_entity_decode($v, ENT_QUOTES, 'UTF-8')), ENT_QUOTES | ENT_SUBSTITUTE, 'UTF-8');
}
while (($line = fgets(STDIN)) !== false) {
    $raw = base64_decode(trim($line));
    $params = [];
    if ($raw !== '' && $raw[0] === '{') $params = json_decode($raw, true) ?? [];
    else parse_str($raw, $params);
    $privileged = 0;
    foreach (['cip', 'country', 'region', 'city', 'lat', 'long'] as $name) {
        if (!empty(text($params[$name] ?? null))) $privileged = 1;
    }
    echo $privileged, "\n";
}
