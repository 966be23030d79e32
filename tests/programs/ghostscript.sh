# SPDX-License-Identifier: Apache-2.0
# needs: gs
# limit: 120
# program: gs
# compare
# shows: the pages equal those drawn without the library
# PostScript's memory is chunks of its own, of which each has a small record: so thousands of them, of which most go.
set -eu
cat >drawing.ps <<'P'
%!PS
/many 6000 def
/keep many dict def
0 1 many 1 sub { keep exch 20000 string put } for
0 1 many 1 sub { dup 17 mod 0 ne { keep exch undef } { pop } ifelse } for
2 vmreclaim
keep length =
/Times-Roman findfont 9 scalefont setfont
1 1 12 { /p exch def
  0 1 90 { /i exch def 20 i 8 mul 30 add moveto
    (Page ) show p 10 string cvs show ( line ) show i 10 string cvs show
    gsave 300 i 8 mul 30 add 3 i 20 mod 0 360 arc i 90 div 0 p 12 div setrgbcolor fill grestore
    /d 50 dict def 0 1 40 { dup d exch 20 string put } for } for
  showpage } for
0 keep { exch pop length add } forall =
P
gs -q -dNOPAUSE -dBATCH -dSAFER -sDEVICE=png16m -r72 -sOutputFile=page%02d.png drawing.ps
gs -q -dNOPAUSE -dBATCH -dSAFER -sDEVICE=pdfwrite -sOutputFile=drawing.pdf drawing.ps
gs -q -dNOPAUSE -dBATCH -dSAFER -sDEVICE=ppmraw -r60 -sOutputFile=again%02d.ppm drawing.pdf
cksum page*.png again*.ppm
