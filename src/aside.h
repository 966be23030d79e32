/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Standing aside: in programs that are better left alone the library makes no heap, and the malloc family is that of
 * whoever comes next, as a rule libc. Decided at the first call of all, for good. No heap means that every pointer is
 * somebody else's and that every vector is empty, so the fast ways need not know of it.
 */
#ifndef MU_ASIDE_H
#define MU_ASIDE_H

#include "src/common.h"

enum mu_aside { MU_ASIDE_NO, MU_ASIDE_DENIED, MU_ASIDE_SANITIZER, MU_ASIDE_CHECKER };

extern enum mu_aside mu_aside; /* in thread_local_heap.c, which makes no heap then */

/* Decides; env is the environment or NULL where it is not to be believed. */
void mu_aside_decide(char *const *env);
/* Says why on standard error, for people who look for what the library does not do. */
void mu_aside_say(void);

/* First of all constructors: lets a sanitizer begin that would come too late. */
void mu_begin_sanitizer(void);

/* Whether valgrind runs this program; it may or may not serve malloc. */
bool mu_under_valgrind(void);

/* Whether this copy of the library is not in the program's own namespace of libraries (dlmopen): then it must have no
 * thread, since libc's fork and setuid there know nothing of it. */
bool mu_is_second_namespace(void);

/*
 * Pointers of another malloc that the process has: allocated before this library was loaded, or by those who do not see
 * it. False, or 0, where the process's malloc is ours, so that there are none.
 */
bool mu_foreign_free(void *p);
bool mu_foreign_realloc(void *p, size_t size, void **ret_q);
size_t mu_foreign_usable(void *p);

/* The next malloc's. mu_next_usable is 0 where that cannot be asked. */
void *mu_next_malloc(size_t size);
void *mu_next_realloc(void *p, size_t size);
void *mu_next_memalign(size_t align, size_t size);
void mu_next_free(void *p);
size_t mu_next_usable(void *p);

#endif
