<?php
// SPDX-License-Identifier: Apache-2.0
// php-redis with default settings in one role of the client matrix: HOST PORT PREFIX main|pop|sub|scan.
// Prints a line of JSON for each operation; ends when its standard input is closed.
[, $host, $port, $prefix, $role] = $argv;
const PUSH = "redis.call('RPUSH', KEYS[1], ARGV[1]) return ARGV[1]";
stream_set_blocking(STDIN, false);
$r = new Redis();
$r->connect($host, (int) $port);

function now(): int
{
    return (int) (microtime(true) * 1e6);
}

// report runs one operation. Where a server's error is not thrown, this library keeps it and returns false.
function report(string $feature, int $seq, callable $op): void
{
    global $r;
    $start = now();
    $err = $value = '';
    try {
        $r->clearLastError();
        $value = (string) $op($seq);
    } catch (Throwable $e) {
        $err = get_class($e) . ': ' . $e->getMessage();
        if ($r->isConnected() && $r->getLastError() !== null) {
            $err .= '; ' . $r->getLastError();
        }
    }
    echo json_encode(['f' => $feature, 'seq' => $seq, 's' => $start, 'e' => now(), 'err' => $err, 'v' => $value]), "\n";
}

function same($got, $expected)
{
    if ((string) $got !== (string) $expected) {
        throw new Exception('got ' . json_encode($got) . ', want ' . json_encode($expected));
    }
    return $got;
}

// good is for replies of which false is the only bad one.
function good($got)
{
    if ($got === false || $got === []) {
        throw new Exception('got ' . json_encode($got));
    }
    return $got;
}

$sha = sha1(PUSH);
$helper = "-- helper\n" . PUSH;
$loop = [
    'strings' => function ($seq) use ($r, $prefix) {
        good($r->set("{$prefix}s:$seq", $seq));
        return same($r->get("{$prefix}s:$seq"), $seq);
    },
    'pipeline' => function ($seq) use ($r, $prefix) {
        $p = $r->pipeline()->rPush("{$prefix}pipeline", $seq)->set("{$prefix}last", $seq)->get("{$prefix}last");
        for ($i = 0; $i < 10; $i++) {
            $p->incr("{$prefix}n");
        }
        $replies = $p->exec();
        foreach ($replies as $each) {
            good($each);
        }
        return same($replies[2], $seq);
    },
    'transaction' => function ($seq) use ($r, $prefix) {
        good($r->watch("{$prefix}counter"));
        $n = (int) $r->get("{$prefix}counter");
        $results = $r->multi()->set("{$prefix}counter", $n + 1)->rPush("{$prefix}transaction", $seq)->exec();
        if ($results === false && $r->getLastError() === null) {
            throw new Exception('EXEC answered null');
        }
        return same(count(good($results)), 2);
    },
    'script' => function ($seq) use ($r, $prefix, $helper) {
        $v = $r->evalSha(sha1($helper), ["{$prefix}script", $seq], 1);
        if ($v === false && str_starts_with((string) $r->getLastError(), 'NOSCRIPT')) {
            $r->clearLastError();
            $v = $r->eval($helper, ["{$prefix}script", $seq], 1);
        }
        return same($v, $seq);
    },
    'evalsha' => fn ($seq) => same($r->evalSha($sha, ["{$prefix}evalsha", $seq], 1), $seq),
    'blocking' => function ($seq) use ($r, $prefix) {
        good($r->lPush("{$prefix}queue", $seq));
        return good($r->brpoplpush("{$prefix}queue", "{$prefix}blocking", 20));
    },
    'stream' => function ($seq) use ($r, $prefix) {
        good($r->xAdd("{$prefix}stream", '*', ['n' => $seq]));
        $read = good($r->xReadGroup('g', 'c', ["{$prefix}stream" => '>'], 100, 1000));
        foreach (array_keys($read["{$prefix}stream"]) as $id) {
            same($r->xAck("{$prefix}stream", 'g', [$id]), 1);
        }
    },
    'publish' => function ($seq) use ($r, $prefix) {
        $n = $r->publish("{$prefix}channel", $seq);
        return is_int($n) ? $n : good(false);
    },
];

function scan(Redis $r, string $prefix): void
{
    $r->setOption(Redis::OPT_SCAN, Redis::SCAN_RETRY);
    $seen = [];
    $cursor = null;
    while (($keys = $r->scan($cursor, "{$prefix}fix:*", 20)) !== false) {
        $seen += array_flip($keys);
        usleep(10000);
    }
    if ($r->getLastError() !== null) {
        throw new Exception('scan failed');
    }
    if (($missing = 500 - count($seen)) > 0) {
        throw new Exception("a complete SCAN did not return $missing of 500 keys that were there all the time");
    }
}

function ended(): bool
{
    fread(STDIN, 16);
    return feof(STDIN);
}

if ($role === 'main') {
    report('setup', 0, function () use ($r, $prefix) {
        good($r->script('load', PUSH));
        good($r->xGroup('CREATE', "{$prefix}stream", 'g', '0', true));
    });
}
for ($seq = 1; !ended(); $seq++) {
    switch ($role) {
        case 'main':
            foreach ($loop as $f => $op) {
                report($f, $seq, $op);
            }
            usleep(5000);
            break;
        case 'pop':
            report('pop', $seq, fn () => good($r->blPop(["{$prefix}pop"], 20))[1]);
            break;
        case 'scan':
            report('scan', $seq, fn () => scan($r, $prefix));
            break;
        case 'sub':
            ini_set('default_socket_timeout', '-1'); // its manual's way to wait for messages
            report('message', 0, fn () => good($r->subscribe(["{$prefix}channel"], fn ($r, $c, $v) => report('message', 0, fn () => $v))));
            usleep(100000);
    }
}
