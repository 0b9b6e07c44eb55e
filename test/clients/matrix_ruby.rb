# SPDX-License-Identifier: Apache-2.0
# The redis gem with default settings in one role of the client matrix: HOST PORT PREFIX main|pop|sub|scan.
# Prints a line of JSON for each operation; ends when its standard input is closed.
require 'json'
require 'redis'
require 'digest'

HOST, PORT, PREFIX, ROLE = ARGV
PUSH = "redis.call('RPUSH', KEYS[1], ARGV[1]) return ARGV[1]"
HELPER = "-- helper\n#{PUSH}"
$stdout.sync = true
Redis.silence_deprecations = true if Redis.respond_to?(:silence_deprecations=)
R = Redis.new(host: HOST, port: PORT.to_i)
$done = false
Thread.new do
  $stdin.read
  $done = true
  exit!(0) if %w[pop sub].include?(ROLE)
end

def now
  (Time.now.to_r * 1_000_000).to_i
end

def report(feature, seq)
  start = now
  err = value = ''
  begin
    value = yield.to_s
  rescue StandardError => e # every error is reported, whatever it is
    err = "#{e.class}: #{e.message}"
  end
  puts JSON.generate(f: feature, seq: seq, s: start, e: now, err: err, v: value)
end

def same(got, expected)
  raise "got #{got.inspect}, want #{expected.inspect}" if got.to_s != expected.to_s

  got
end

def strings(seq)
  R.set("#{PREFIX}s:#{seq}", seq)
  same(R.get("#{PREFIX}s:#{seq}"), seq)
end

def pipeline(seq)
  replies = R.pipelined do |p|
    p.rpush("#{PREFIX}pipeline", seq)
    p.set("#{PREFIX}last", seq)
    p.get("#{PREFIX}last")
    10.times { p.incr("#{PREFIX}n") }
  end
  same(replies[2], seq)
end

def transaction(seq)
  results = R.watch("#{PREFIX}counter") do
    n = R.get("#{PREFIX}counter").to_i
    R.multi do |m|
      m.set("#{PREFIX}counter", n + 1)
      m.rpush("#{PREFIX}transaction", seq)
    end
  end
  raise 'EXEC answered null' if results.nil?

  same(results.length, 2)
end

def script(seq)
  v = begin
    R.evalsha(Digest::SHA1.hexdigest(HELPER), keys: ["#{PREFIX}script"], argv: [seq])
  rescue Redis::CommandError => e
    raise unless e.message.start_with?('NOSCRIPT')

    R.eval(HELPER, keys: ["#{PREFIX}script"], argv: [seq])
  end
  same(v, seq)
end

def evalsha(seq)
  same(R.evalsha(Digest::SHA1.hexdigest(PUSH), keys: ["#{PREFIX}evalsha"], argv: [seq]), seq)
end

def blocking(seq)
  R.lpush("#{PREFIX}queue", seq)
  R.brpoplpush("#{PREFIX}queue", "#{PREFIX}blocking", timeout: 20) || raise('nothing was moved')
end

def stream(seq)
  R.xadd("#{PREFIX}stream", { n: seq })
  read = R.xreadgroup('g', 'c', "#{PREFIX}stream", '>', count: 100, block: 1000)
  read.fetch("#{PREFIX}stream").each { |id, _| same(R.xack("#{PREFIX}stream", 'g', id), 1) }
  nil
end

def publish(seq)
  R.publish("#{PREFIX}channel", seq)
end

def scan
  seen = {}
  R.scan_each(match: "#{PREFIX}fix:*", count: 20).each_with_index do |key, i|
    seen[key] = true
    sleep 0.01 if (i % 20).zero?
  end
  missing = (0...500).map { |i| "#{PREFIX}fix:#{i}" }.reject { |k| seen[k] }
  raise "a complete SCAN did not return #{missing.length} of 500 keys that were there all the time: #{missing.first(3)}" if missing.any?
end

if ROLE == 'main'
  report('setup', 0) do
    R.script(:load, PUSH)
    R.xgroup(:create, "#{PREFIX}stream", 'g', '0', mkstream: true)
  end
end
seq = 0
until $done
  seq += 1
  case ROLE
  when 'main'
    %i[strings pipeline transaction script evalsha blocking stream publish].each { |f| report(f, seq) { send(f, seq) } }
    sleep 0.005
  when 'pop'
    report('pop', seq) { (R.blpop("#{PREFIX}pop", timeout: 20) || raise('nothing was popped'))[1] }
  when 'scan'
    report('scan', seq) { scan }
  when 'sub'
    report('message', 0) do
      R.subscribe("#{PREFIX}channel") { |on| on.message { |_, v| report('message', 0) { v } } }
      raise 'the subscription ended'
    end
    sleep 0.1
  end
end
