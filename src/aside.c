/* SPDX-License-Identifier: Apache-2.0 */
#include "src/aside.h"
#include "src/entry.h"
#include "src/log.h"
#include "src/sys.h"
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

/* ---- programs that are denied ------------------------------------------------------------------------------------ */

MU_EARLY_CONST static const char deny_file[] = MU_SYSCONFDIR "/mesh-uffd.deny";
static const char deny_name[] = "MESH_UFFD_DENY=";

static const char *last_part(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* The file's words: a # begins a comment. In place. */
static void strip_comments(char *text) {
  bool comment = false;
  for (; *text; text++) {
    if (*text == '#') comment = true;
    if (*text == '\n') comment = false;
    if (comment) *text = ' ';
  }
}

/* Whether one of the words, which any of the separators ends, is the name. */
static bool lists(const char *words, const char *separators, const char *name) {
  size_t want = strlen(name);
  while (*words) {
    size_t n = strcspn(words, separators);
    if (n && n == want && memcmp(words, name, n) == 0) return true;
    words += n + (words[n] != 0);
  }
  return false;
}

MU_AT_START static const char *denied_by(char *const *env) {
  for (; env && *env; env++)
    if ((*env)[0] == deny_name[0] && strncmp(*env, deny_name, sizeof deny_name - 1) == 0)
      return *env + sizeof deny_name - 1;
  return "";
}

/* By the name it was started by, which of a script is the script's, or by that of its file. fd: the list. */
static MU_NOINLINE bool is_listed(const char *words, int fd) {
  char file[8192], path[4096];
  const char *started = (const char *)getauxval(AT_EXECFN);
  if (fd < 0 || mu_read_all(fd, file, sizeof file) <= 0) file[0] = 0;
  strip_comments(file);
  long n = mu_sys_call(MU_SYS_readlinkat, AT_FDCWD, (long)"/proc/self/exe", (long)path, sizeof path - 1, 0, 0);
  path[n > 0 ? n : 0] = 0;
  const char *names[] = {started ? last_part(started) : "", last_part(path)};
  for (int i = 0; i < 2; i++)
    if (*names[i] && (lists(words, ":", names[i]) || lists(file, " \t\r\n", names[i]))) return true;
  return false;
}

MU_AT_START static bool is_denied(char *const *env) {
  const char *words = denied_by(env);
  int fd = mu_open(deny_file, O_RDONLY | O_CLOEXEC);
  bool listed = (*words || fd >= 0) && is_listed(words, fd);
  if (fd >= 0) mu_close(fd);
  return listed;
}

/* ---- checkers, which serve the malloc family themselves ---------------------------------------------------------- */

#ifndef MU_PREFIXED_ONLY
extern void __asan_init(void) __attribute__((weak));
extern void __hwasan_init(void) __attribute__((weak));
extern void __msan_init(void) __attribute__((weak));
extern void __tsan_init(void) __attribute__((weak));

static bool has_sanitizer(void) {
  return __asan_init || __hwasan_init || __msan_init || __tsan_init;
}

/* Ours are the first constructors, and look up functions; what the sanitizer puts in their place does not work before
 * it has begun. */
void mu_begin_sanitizer(void) {
  if (__tsan_init) __tsan_init();
}

/* Instructions without effect that valgrind knows as the question whether it is there. */
MU_AT_START bool mu_under_valgrind(void) {
#ifdef __x86_64__
  volatile uint64_t question[6]; /* not initialized by a constant, which would be on a page of its own */
  uint64_t answer = 0;
  question[0] = 0x1001;
  for (int i = 1; i < 6; i++) question[i] = 0;
  __asm__ volatile("rolq $3, %%rdi; rolq $13, %%rdi; rolq $61, %%rdi; rolq $51, %%rdi; xchgq %%rbx, %%rbx"
                   : "+d"(answer)
                   : "a"(question)
                   : "cc", "memory");
  return answer != 0;
#else
  return false;
#endif
}
#else
static bool has_sanitizer(void) {
  return false;
}
void mu_begin_sanitizer(void) {}
bool mu_under_valgrind(void) {
  return false;
}
#endif

/* ---- the next malloc ----------------------------------------------------------------------------------------------
 */

/* libc's, without a look-up, which may allocate. Weak: a static program has only what it refers to. */
extern void *__libc_malloc(size_t) __attribute__((weak));
extern void *__libc_realloc(void *, size_t) __attribute__((weak));
extern void *__libc_memalign(size_t, size_t) __attribute__((weak));
extern void __libc_free(void *) __attribute__((weak));

static struct {
  void *(*malloc)(size_t);
  void *(*realloc)(void *, size_t);
  void *(*memalign)(size_t, size_t);
  void (*free)(void *);
  size_t (*usable)(void *);
} next = {__libc_malloc, __libc_realloc, __libc_memalign, __libc_free, NULL};

/* A sanitizer's may be in the program itself, and so before us. */
static void *look_up(const char *name, void *ours, void *instead) {
  void *f = dlsym(RTLD_DEFAULT, name);
  if (!f || f == ours) f = dlsym(RTLD_NEXT, name);
  return f ? f : instead;
}

static void find_next(void) {
  static bool found;
  if (found) return;
  found = true;
  next.usable = (size_t(*)(void *))dlsym(RTLD_NEXT, "malloc_usable_size");
  if (mu_aside != MU_ASIDE_SANITIZER) return;
  next.malloc = (void *(*)(size_t))look_up("malloc", (void *)mu_malloc, (void *)next.malloc);
  next.realloc = (void *(*)(void *, size_t))look_up("realloc", (void *)mu_realloc, (void *)next.realloc);
  next.memalign = (void *(*)(size_t, size_t))look_up("memalign", (void *)mu_memalign, (void *)next.memalign);
  next.free = (void (*)(void *))look_up("free", (void *)mu_free, (void *)next.free);
}

static void ready(void) {
  if (mu_aside == MU_ASIDE_SANITIZER) find_next();
}

void *mu_next_malloc(size_t size) {
  ready();
  return next.malloc(size);
}
void *mu_next_realloc(void *p, size_t size) {
  ready();
  return next.realloc(p, size);
}
void *mu_next_memalign(size_t align, size_t size) {
  ready();
  return next.memalign(align, size);
}
void mu_next_free(void *p) {
  ready();
  next.free(p);
}
size_t mu_next_usable(void *p) {
  find_next();
  return next.usable ? next.usable(p) : 0;
}

/* ---- pointers of the process's malloc, when that is not ours -------------------------------------------------------
 */

/* Through volatile variables: a compiler may take it for granted that functions of two names are two. */
#ifndef MU_PREFIXED_ONLY
bool mu_foreign_free(void *p) {
  void (*volatile theirs)(void *) = free;
  if (theirs == mu_free) return false;
  theirs(p);
  return true;
}

bool mu_foreign_realloc(void *p, size_t size, void **ret_q) {
  void *(*volatile theirs)(void *, size_t) = realloc;
  if (theirs == mu_realloc) return false;
  *ret_q = theirs(p, size);
  return true;
}

size_t mu_foreign_usable(void *p) {
  void (*volatile theirs)(void *) = free;
  return theirs == mu_free ? 0 : mu_next_usable(p);
}
#else
bool mu_foreign_free(void *p) {
  (void)p;
  return false;
}
bool mu_foreign_realloc(void *p, size_t size, void **ret_q) {
  (void)p, (void)size, (void)ret_q;
  return false;
}
size_t mu_foreign_usable(void *p) {
  (void)p;
  return 0;
}
#endif

/* ---- the decision --------------------------------------------------------------------------------------------------
 */

MU_AT_START void mu_aside_decide(char *const *env) {
  if (!next.malloc || !next.realloc || !next.memalign || !next.free) return;
  if (has_sanitizer())
    mu_aside = MU_ASIDE_SANITIZER;
  else if (is_denied(env))
    mu_aside = MU_ASIDE_DENIED;
}

void mu_aside_say(void) {
  static const char *const why[] = {[MU_ASIDE_NO] = "",
                                    [MU_ASIDE_DENIED] = "this program is on the list of those to be left alone",
                                    [MU_ASIDE_SANITIZER] =
                                        "this program is built with a sanitizer, which has a malloc of its own",
                                    [MU_ASIDE_CHECKER] = "valgrind serves malloc"};
  if (mu_aside) mu_log("stands aside: %s", why[mu_aside]);
}

/* ---- another namespace --------------------------------------------------------------------------------------------
 */

extern ElfW(Dyn) _DYNAMIC[] __attribute__((weak, visibility("hidden")));
extern struct r_debug _r_debug __attribute__((weak));

MU_AT_START bool mu_is_second_namespace(void) {
  if (!_DYNAMIC || !&_r_debug) return false; /* a static program has neither */
  const struct link_map *first = _r_debug.r_map;
  for (const struct link_map *at = first; at; at = at->l_next)
    if (at->l_ld == _DYNAMIC) return false;
  return first != NULL;
}
