<?php
// Answers what PHP makes of an input. One question a line on standard input: an
// operation and its arguments in base64, separated by spaces. One answer a line:
// JSON, with every string in base64.

error_reporting(0);

function parsed(string $query): array
{
    parse_str($query, $variables);
    return $variables;
}

// The order of variables means nothing to Matomo; the order inside arrays may.
function same(array $a, array $b): bool
{
    ksort($a, SORT_STRING);
    ksort($b, SORT_STRING);
    return $a === $b;
}

function listed(array $variables): array
{
    $list = [];
    foreach ($variables as $name => $value) {
        $list[] = [base64_encode((string) $name), is_array($value) ? null : base64_encode($value)];
    }
    return $list;
}

// How Matomo escapes one value when it reads it.
function escaped(string $value): string
{
    if (is_numeric($value)) {
        return $value;
    }
    $plain = str_replace("\0", '', html_entity_decode($value, ENT_QUOTES, 'UTF-8'));
    $escaped = htmlspecialchars($plain, ENT_QUOTES, 'UTF-8');
    if ($escaped === '' && $plain !== '') {
        return htmlspecialchars(utf8_encode($plain), ENT_QUOTES, 'UTF-8');
    }
    return $escaped;
}

// An int parameter as Matomo reads it.
function intParameter(array $variables, string $name, int $default): int
{
    $value = $variables[$name] ?? null;
    if ($value === null || $value === '' || is_array($value)) {
        return $default;
    }
    $value = escaped($value);
    return $value == (string) (int) $value ? (int) $value : $default;
}

// The query of a string of a bulk request, or null when Matomo drops it.
function bulkQuery(string $url): ?string
{
    $parts = parse_url($url);
    return empty($parts['query']) ? null : $parts['query'];
}

function answer(string $operation, array $arguments): mixed
{
    [$a, $b, $c] = $arguments + ['', '', ''];
    switch ($operation) {
        case 'parse':
            return listed(parsed($a));
        case 'same':
            return same(parsed($a), parsed($b));
        case 'merged': // get, post, and what is to be the same
            return same(parsed($a) + parsed($b), parsed($c));
        case 'serialized': // serialized variables, and what is to be the same
            return same(unserialize($a), parsed($b));
        case 'decode':
            return base64_encode(urldecode($a));
        case 'encode':
            return base64_encode(rawurlencode($a));
        case 'query':
            $query = bulkQuery($a);
            return $query === null ? null : base64_encode($query);
        case 'intval':
            return (string) (int) $a;
        case 'empty':
            return empty($a);
        case 'int': // query, name, default
            return (string) intParameter(parsed($a), $b, (int) $c);
    }
    return 'unknown operation';
}

while (($line = fgets(STDIN)) !== false) {
    $words = explode(' ', rtrim($line, "\n"));
    $operation = array_shift($words);
    echo json_encode(answer($operation, array_map('base64_decode', $words))), "\n";
}
