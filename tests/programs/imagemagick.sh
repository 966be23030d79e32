# SPDX-License-Identifier: Apache-2.0
# needs: /usr/bin/convert
# limit: 180
# program: convert.*|magick
# compare
# shows: the images equal those made without the library
# Its pixels are large blocks. Small ones come with each image of a list; so a list of thousands, of which most go again.
set -eu
convert() { /usr/bin/convert "$@"; }
convert -size 700x500 gradient:yellow-blue -swirl 180 a.ppm
convert a.ppm -blur 0x4 -resize 300% -quantize YUV -colors 32 b.ppm
convert a.ppm b.ppm -resize 400x300! -average -edge 2 -negate c.ppm
convert a.ppm -crop 50x50 +repage tile%03d.ppm
convert tile*.ppm -append d.ppm
convert a.ppm -quality 80 a.jpg && convert a.jpg -rotate 33 e.ppm
convert a.ppm a.png && convert a.png -morphology Dilate Disk:2 f.ppm
go=$(seq 0 3499 | awk '{ if ($1 * 7919 % 3500 % 11) printf "%s%d", n++ ? "," : "", $1 }')
convert a.ppm -crop 10x10 +repage -set comment 'tile %p' -delete "$go" -resize 40x40! -blur 0x2 -append g.ppm
cksum a.ppm b.ppm c.ppm d.ppm e.ppm f.ppm g.ppm
