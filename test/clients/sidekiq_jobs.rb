# SPDX-License-Identifier: Apache-2.0
# Sidekiq with default settings, REDIS_URL as its server. As a program it adds N jobs and prints "added n" and
# "error TEXT". Sidekiq loads it; its jobs print "done n".
require 'sidekiq'

Redis.silence_deprecations = true
Sidekiq.logger.level = Logger::WARN

class NumberJob
  include Sidekiq::Worker

  def perform(number)
    $stdout.write("done #{number}\n")
    $stdout.flush
  end
end

if $PROGRAM_NAME == __FILE__
  $stdout.sync = true
  (1..ARGV[0].to_i).each do |n|
    begin
      NumberJob.perform_async(n)
      puts "added #{n}"
    rescue StandardError => e # every error is reported, whatever it is
      puts "error #{e.class} #{e.message.tr("\n", ' ')}"
      sleep 0.05
      retry
    end
  end
end
