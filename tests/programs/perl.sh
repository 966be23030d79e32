# SPDX-License-Identifier: Apache-2.0
# needs: perl
# limit: 120
# program: perl.*
# shows: sums over hashes, in forked children too, equal those without the library
# compare
set -eu
export PERL_HASH_SEED=0
perl -e '
use strict; use warnings;
my (%table, @list); my $state = 1;
sub next_number { $state = ($state * 1103515245 + 12345) % 2147483648; return int($state / 65536) }
for my $i (1 .. 400000) {
  my $key = next_number() % 20000;
  push @{$table{$key}}, { number => $i, text => "x" x ($i % 200) };
  delete $table{next_number() % 20000} if $i % 3;
  push @list, join(":", $i, scalar reverse "abc$i"); splice(@list, 0, 5000) if @list > 20000;
  if ($i % 100000 == 0) {
    my $pid = fork; die unless defined $pid;
    if (!$pid) { my $n = 0; $n += @{$table{$_}} for keys %table; %table = (); exit($n % 7) }
    waitpid $pid, 0; print "child $?\n";
  }
}
my $sum = 0;
for my $key (sort { $a <=> $b } keys %table) { $sum += $_->{number} + length $_->{text} for @{$table{$key}} }
print scalar(keys %table), " $sum ", scalar(@list), " $list[0]\n";
my $text = join " ", @list; my $count = () = $text =~ /(\d+)cba/g; print "$count\n";
'
