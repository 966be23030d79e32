# SPDX-License-Identifier: Apache-2.0
# needs: java javac
# limit: 240
# several threads
# program: java|javac
# shows: sums over direct buffers, zipped and unzipped data equal those without the library
# compare
# The compiler, the collector and class loading use malloc; so do direct buffers and zip.
set -eu
cat >Program.java <<'J'
import java.nio.ByteBuffer;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.*;
import java.util.zip.*;
public class Program {
  static long churn(int seed) {
    Random r = new Random(seed);
    Map<Integer, ByteBuffer> keep = new HashMap<>();
    for (int i = 0; i < 8000; i++) {
      ByteBuffer b = ByteBuffer.allocateDirect(r.nextInt(900) + 8);
      b.putInt(0, i);
      keep.put(r.nextInt(1000), b);
      if (i % 3 != 0) keep.remove(r.nextInt(1000));
    }
    long sum = 0;
    for (var e : new TreeMap<>(keep).entrySet()) sum = sum * 31 + e.getKey() + e.getValue().getInt(0);
    return sum;
  }
  public static void main(String[] a) throws Exception {
    var pool = Executors.newFixedThreadPool(4);
    var all = new ArrayList<Future<Long>>();
    for (int i = 0; i < 8; i++) { int n = i; all.add(pool.submit(() -> churn(n))); }
    for (var f : all) System.out.println(f.get());
    pool.shutdown();
    byte[] data = IntStream.range(0, 200000).mapToObj(Integer::toString).collect(Collectors.joining(",")).getBytes();
    for (int level = 1; level <= 9; level++) {
      Deflater d = new Deflater(level); d.setInput(data); d.finish();
      byte[] out = new byte[data.length]; int n = d.deflate(out); d.end();
      Inflater inf = new Inflater(); inf.setInput(out, 0, n); byte[] back = new byte[data.length]; inf.inflate(back); inf.end();
      System.out.println(Arrays.equals(data, back));
    }
    System.out.println(new Scanner(new ProcessBuilder("echo", "child").start().getInputStream()).next());
  }
}
J
javac Program.java
java -Xmx256m Program
java -Xmx256m -XX:+UseSerialGC -Xcomp -XX:TieredStopAtLevel=1 Program | cksum
