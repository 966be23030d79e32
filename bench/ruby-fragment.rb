# SPDX-License-Identifier: Apache-2.0
#
# Strings that double in length while three of four are dropped: what is kept of each length is in the way of the next.
#
#     ruby ruby-fragment.rb [N [AVAILABLE_MIB [ack]]]
#
# Prints "mark NAME key=value ..." lines; with `ack`, waits for a line on standard input after each. Reads every string
# that it kept at the end, and exits 1 when one has changed.

HEADER = 16 # what malloc is asked for is about n for a string of n - HEADER bytes

n = (ARGV[0] || 512).to_i
available = (ARGV[1] || 128).to_i << 20
$ack = ARGV[2] == 'ack'
$stdout.sync = true

def mark(name, live)
  puts "mark #{name} live=#{live}"
  $stdin.gets if $ack
end

def fragment(n, available)
  kept = []
  live = 0
  while available >= n
    count = available / n
    batch = Array.new(count) { |i| (97 + i % 26).chr * (n - HEADER) }
    some = batch.each_slice(4).map(&:first)
    kept << [n, some]
    live += some.sum(&:bytesize)
    batch = some = nil
    sleep 0.2
    GC.start(full_mark: true, immediate_sweep: true)
    mark("n#{n}", live)
    available -= count * n / 4
    n *= 2
  end
  kept
end

mark('start', 0)
kept = fragment(n, available)
mark('end', kept.sum { |_, strings| strings.sum(&:bytesize) })
wrong = kept.sum do |length, strings|
  strings.each_with_index.count { |s, k| s != (97 + k * 4 % 26).chr * (length - HEADER) }
end
warn "ruby-fragment: #{wrong} strings have changed" if wrong > 0
exit(wrong.zero? ? 0 : 1)
