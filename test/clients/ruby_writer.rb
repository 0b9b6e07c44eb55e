# SPDX-License-Identifier: Apache-2.0
# Writes RPUSH key 1, 2, 3, … through ruby-redis with default settings, which finds the primary through Sentinel: KEY NAME HOST PORT [HOST
# PORT]…. Prints one line for each attempt: ok|err <seq> <start µs> <end µs> [error]. Ends when its standard input is closed.
require 'redis'

key, name, *rest = ARGV
sentinels = rest.each_slice(2).map { |host, port| { host: host, port: port.to_i } }
client = Redis.new(url: "redis://#{name}", sentinels: sentinels, role: :master)
done = false
Thread.new { $stdin.read; done = true }
$stdout.sync = true
now = -> { (Time.now.to_r * 1_000_000).to_i }
seq = 0
until done
  seq += 1
  start = now.call
  out = 'ok'
  why = ''
  begin
    client.rpush(key, seq)
  rescue StandardError => e
    out = 'err'
    why = e.message.tr("\n", ' ')
  end
  puts "#{out} #{seq} #{start} #{now.call} #{why}"
  sleep 0.001
end
