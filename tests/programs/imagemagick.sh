# SPDX-License-Identifier: Apache-2.0
# needs: convert
# limit: 180
# compare
# may not mesh
set -eu
convert -size 700x500 plasma:red-blue -seed 7 noise.ppm 2>/dev/null || true
convert -size 700x500 gradient:yellow-blue -swirl 180 a.ppm
convert a.ppm -blur 0x4 -resize 300% -quantize YUV -colors 32 b.ppm
convert a.ppm b.ppm -resize 400x300! -average -edge 2 -negate c.ppm
convert a.ppm -crop 50x50 +repage tile%03d.ppm
convert tile*.ppm -append d.ppm
convert a.ppm -quality 80 a.jpg && convert a.jpg -rotate 33 e.ppm
convert a.ppm a.png && convert a.png -morphology Dilate Disk:2 f.ppm
cksum a.ppm b.ppm c.ppm d.ppm e.ppm f.ppm
