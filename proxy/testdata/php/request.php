<?php
// The router of PHP's own server: says what PHP made of the request.
$flat = [];
foreach ($_GET + $_POST as $name => $value) $flat[] = base64_encode($name) . '=' . (is_array($value) ? '[]' : base64_encode($value));
header('X-Params: ' . implode(' ', $flat));
header('X-Ignore: ' . base64_encode($_COOKIE['matomo_ignore'] ?? "\x00none"));
header('X-Agent: ' . base64_encode($_SERVER['HTTP_USER_AGENT'] ?? "\x00none"));
header('X-Input: ' . strlen(file_get_contents('php://input')));
echo 'ok';
