/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MU_OPEN_LIBRARY_H
#define MU_OPEN_LIBRARY_H

#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/auxv.h>

/* Weak: a static program that opens no library shall not contain what that takes. */
#ifdef LM_ID_NEWLM
extern void *dlmopen(Lmid_t, const char *, int) __attribute__((weak));
#else
extern void *dlopen(const char *, int) __attribute__((weak));
#endif

struct mu_wanted {
  const char *name;
  void *function; /* where its address goes */
};

/* Function pointers and what dlsym returns have the same representation. */
static inline bool mu_find_wanted(void *library, const struct mu_wanted *w) {
  return (*(void **)w->function = dlsym(library, w->name)) != NULL;
}

/*
 * In our constructor; wanted ends with a NULL. False: the library, or one of its functions, is not there. glibc runs
 * our constructor before its own: opening a library that needs libc would then initialize libc, with no arguments and
 * no environment, which the program would find empty. So with glibc the library gets a libc of its own, in a namespace
 * of its own. A program without a dynamic linker opens none.
 */
static inline bool mu_open_library(const char *soname, const struct mu_wanted *wanted) {
  void *library = NULL;
#ifdef LM_ID_NEWLM
  if (dlmopen && getauxval(AT_BASE)) library = dlmopen(LM_ID_NEWLM, soname, RTLD_NOW | RTLD_LOCAL);
#else
  if (dlopen && getauxval(AT_BASE)) library = dlopen(soname, RTLD_NOW | RTLD_LOCAL);
#endif
  bool all = library != NULL;
  for (; all && wanted->name; wanted++) all = mu_find_wanted(library, wanted);
  return all;
}

#endif
