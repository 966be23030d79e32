/* SPDX-License-Identifier: Apache-2.0 */
/* Spans that the program's own calls make unfit for a pass. */
#ifndef MU_MARKS_H
#define MU_MARKS_H

#include "src/common.h"

/* Before the program makes a system call: marks what its memory arguments (the first two: start and length; the third:
 * what is done) make unfit. */
void mu_mark_for_call(long number, long a, long b, long c);

#endif
