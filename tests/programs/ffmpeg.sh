# SPDX-License-Identifier: Apache-2.0
# needs: ffmpeg
# limit: 240
# program: ffmpeg
# shows: frames and files equal those without the library
# may not mesh
# compare
set -eu
run() { ffmpeg -nostdin -loglevel error -y "$@"; }
run -f lavfi -i testsrc=duration=6:size=480x360:rate=25 -f lavfi -i 'sine=frequency=440:duration=6' -bitexact -threads 2 \
  -c:v mpeg4 -q:v 5 -c:a ac3 a.mkv
run -i a.mkv -bitexact -threads 2 -vf 'scale=320:240,hflip,unsharp' -c:v ffv1 -c:a flac b.mkv
run -i b.mkv -f framemd5 - | cksum
run -f lavfi -i testsrc2=duration=3:size=320x240 -bitexact -threads 1 -c:v libx264 -preset fast -f h264 c.h264 2>/dev/null || true
run -f lavfi -i 'mandelbrot=size=320x240:rate=10' -t 3 -bitexact -c:v huffyuv -f framemd5 - | cksum
cksum a.mkv b.mkv
