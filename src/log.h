/* SPDX-License-Identifier: Apache-2.0 */
/* Text for people, on standard error, without allocating. Thread-safe: each message is one write. */
#ifndef MU_LOG_H
#define MU_LOG_H

#include "src/common.h"
#include <stdarg.h>

/* snprintf's subset: %s %d %u %x %p %%, with l and z sizes, widths, and %f with a precision (default 1). Returns the
 * length written, always terminated, cut at room. */
size_t mu_format(char *buf, size_t room, const char *format, ...) __attribute__((format(printf, 3, 4)));
size_t mu_vformat(char *buf, size_t room, const char *format, va_list args);

/* "mesh-uffd: " + message + newline. */
void mu_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same, then abort(). */
_Noreturn void mu_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same for what the program has done wrong with the heap; returns if it is to go on nevertheless. */
void mu_misuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* From now on this thread, whose descriptors are not the program's, takes standard error from the program's. */
void mu_log_from_outside(void);

/* Bytes as they are. */
void mu_print(const char *text, size_t len);

#endif
