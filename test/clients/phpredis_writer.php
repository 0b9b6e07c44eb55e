<?php
// SPDX-License-Identifier: Apache-2.0
// Writes RPUSH key 1, 2, 3, … through php-redis. Its RedisSentinel only asks: whoever uses it connects again after an error, as here. KEY NAME
// HOST PORT [HOST PORT]…. Prints one line for each attempt: ok|err <seq> <start µs> <end µs> [error]. Ends when its standard input is closed.
$key = $argv[1];
$name = $argv[2];
$sentinels = array_chunk(array_slice($argv, 3), 2);
stream_set_blocking(STDIN, false);

function now(): int
{
    return (int) (microtime(true) * 1e6);
}

function connect(array $sentinels, string $name): Redis
{
    $last = null;
    foreach ($sentinels as [$host, $port]) {
        try {
            $addr = (new RedisSentinel($host, (int) $port, 1.0))->getMasterAddrByName($name);
            if (!$addr) {
                throw new Exception("$host:$port knows no $name");
            }
            $r = new Redis();
            $r->connect($addr[0], (int) $addr[1], 1.0);
            return $r;
        } catch (Throwable $e) {
            $last = $e;
        }
    }
    throw $last;
}

$r = null;
for ($seq = 1; ; $seq++) {
    if (fgets(STDIN) === false && feof(STDIN)) {
        break;
    }
    $start = now();
    $out = 'ok';
    $why = '';
    try {
        $r = $r ?? connect($sentinels, $name);
        if ($r->rPush($key, $seq) === false) {
            throw new Exception((string) $r->getLastError());
        }
    } catch (Throwable $e) {
        $out = 'err';
        $why = str_replace("\n", ' ', $e->getMessage());
        $r = null;
    }
    echo "$out $seq $start ", now(), " $why\n";
    usleep(1000);
}
