# SPDX-License-Identifier: Apache-2.0
# needs: ruby
# limit: 120
# several threads
# program: ruby.*
# shows: sums and a digest of a table, in a forked child too, equal those without the library
# compare
set -eu
ruby -e '
state = 1
nextn = lambda { state = (state * 1103515245 + 12345) % 2147483648; state / 65536 }
table = {}
200_000.times do |i|
  key = nextn.call % 20000
  (table[key] ||= []) << "x" * (i % 700) + i.to_s
  table.delete(nextn.call % 20000) if i % 3 != 0
  GC.compact if i % 100_000 == 99_999 && GC.respond_to?(:compact)
end
puts table.size, table.sort.sum { |_, v| v.sum(&:length) }
threads = 4.times.map { |n| Thread.new { (0..20_000).map { |i| "t#{n}" * (i % 50) }.sum(&:length) } }
puts threads.map(&:value).inspect
pid = fork { exit!(table.values.flatten.sum(&:length) % 97) }
Process.wait pid
puts $?.exitstatus == table.values.flatten.sum(&:length) % 97
puts `echo from a shell`
require "digest"
puts Digest::SHA256.hexdigest(table.sort.inspect)
'
