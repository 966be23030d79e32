/* SPDX-License-Identifier: Apache-2.0 */
#include "src/sys.h"
#include "src/log.h"
#include "uffd/compat.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

MU_EARLY_CONST static const uint16_t number[MU_SYS_CALLS] = {
#define X(name) [MU_SYS_##name] = SYS_##name,
    MU_SYS_LIST(X)
#undef X
};

static const char *const name[MU_SYS_COUNT] = {
#define X(n) [MU_SYS_##n] = #n,
    MU_SYS_LIST(X)
#undef X
#define X(n, request) [MU_SYS_##n] = #n,
        MU_SYS_REQUEST_LIST(X)
#undef X
};

static enum mu_sys kind_of_request(unsigned long request) {
  switch (request) {
#define X(n, request)                                                                                                  \
  case request:                                                                                                        \
    return MU_SYS_##n;
    MU_SYS_REQUEST_LIST(X)
#undef X
  default:
    return MU_SYS_ioctl;
  }
}

MU_EARLY mu_sys_hook_fn mu_sys_hook;
static _Atomic uint64_t calls[MU_SYS_COUNT]; /* counted only while a hook is set */

#if defined(__x86_64__)
static inline long raw(long n, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}
#elif defined(__aarch64__)
static inline long raw(long n, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = n;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
}
#else
#error "mesh-uffd knows the system call conventions of x86-64 and aarch64 only"
#endif

long mu_sys_raw(long n, long a, long b, long c, long d, long e, long f) {
  return raw(n, a, b, c, d, e, f);
}

void mu_sys_make_each(void) {
  for (size_t i = 0; i < MU_SYS_CALLS; i++) raw(number[i], -1, -1, -1, -1, -1, -1);
}

static int ask(enum mu_sys call) {
  int error = mu_sys_hook(call, atomic_fetch_add_explicit(&calls[call], 1, memory_order_relaxed));
  return error > 0 ? error : 0;
}

bool mu_sys_made(unsigned call, const char **of, uint64_t *times) {
  if (call >= MU_SYS_COUNT) return false;
  *of = name[call];
  *times = atomic_load_explicit(&calls[call], memory_order_relaxed);
  return true;
}

int mu_sys_refused(enum mu_sys call) {
  return MU_UNLIKELY(mu_sys_hook != NULL) ? ask(call) : 0;
}

static int refused_with(enum mu_sys call, unsigned long request) {
  int error = ask(call);
  if (error || call != MU_SYS_ioctl) return error;
  enum mu_sys kind = kind_of_request(request);
  return kind == MU_SYS_ioctl ? 0 : ask(kind);
}

MU_AT_START int mu_pid(void) {
  return (int)raw(SYS_getpid, 0, 0, 0, 0, 0, 0);
}

MU_AT_START long mu_sys_call(enum mu_sys call, long a, long b, long c, long d, long e, long f) {
  if (MU_UNLIKELY(mu_sys_hook != NULL)) {
    int error = refused_with(call, (unsigned long)b);
    if (error) return -error;
  }
  return raw(number[call], a, b, c, d, e, f);
}

MU_AT_START void *mu_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off, int *err) {
  long r = mu_sys_call(MU_SYS_mmap, (long)at, (long)len, prot, flags, fd, (long)off);
  if (r < 0 && r > -4096) {
    *err = (int)-r;
    return NULL;
  }
  *err = 0;
  return (void *)r;
}

/* Asked by a call that changes nothing. */
static bool is_mapped(void *at, size_t len) {
  return mu_madvise(at, len, MADV_NORMAL) != -ENOMEM;
}

bool mu_mmap_over(void *at, size_t len, int flags, int fd, off_t off) {
  enum { TRIES = 10000, PAUSE_NS = 100000 };
  _Atomic uint32_t never = 0;
  int err;
  for (int i = 0; i < TRIES; i++) {
    if (mu_mmap(at, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, off, &err)) return true;
    if (is_mapped(at, len)) return false;
    if (i) mu_futex_wait(&never, 0, PAUSE_NS);
  }
  mu_die("the kernel has unmapped %p, %zu bytes, and does not map it again: error %d", at, len, err);
}

void mu_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns) {
  struct timespec t = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
  mu_sys_call(MU_SYS_futex, (long)word, FUTEX_WAIT_PRIVATE, (long)expected, timeout_ns < 0 ? 0 : (long)&t, 0, 0);
}

int mu_poll(struct pollfd *fds, unsigned n, int ms) {
  struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
  return (int)mu_sys_call(MU_SYS_ppoll, (long)fds, n, ms < 0 ? 0 : (long)&t, 0, 0, 0);
}

void mu_futex_wake(_Atomic uint32_t *word, int count) {
  enum { TRIES = 50 }; /* a wake that is lost may be the last */
  long r = -1;
  for (int i = 0; i < TRIES && r < 0; i++)
    r = mu_sys_call(MU_SYS_futex, (long)word, FUTEX_WAKE_PRIVATE, count, 0, 0, 0);
}

static uint64_t clock_ns(clockid_t id) {
  struct timespec t = {0, 0};
  clock_gettime(id, &t); /* the vDSO's: no system call to make fail; keeps errno */
  return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

uint64_t mu_now_ns(void) {
  return clock_ns(CLOCK_MONOTONIC);
}
uint64_t mu_thread_cpu_ns(void) {
  return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

ssize_t mu_read_all(int fd, char *buf, size_t room) {
  size_t have = 0;
  ssize_t n = 0;
  while (have + 1 < room && (n = mu_read(fd, buf + have, room - 1 - have)) > 0) have += (size_t)n;
  buf[have] = 0;
  return n < 0 ? n : (ssize_t)have;
}

ssize_t mu_read_file(const char *path, char *buf, size_t room) {
  int fd = mu_open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fd;
  ssize_t n = mu_read_all(fd, buf, room);
  mu_close(fd);
  return n;
}

/* The hook behind MESH_UFFD_TEST_FAIL. */

enum { MAX_RULES = 16 };
static struct rule {
  enum mu_sys call;
  uint64_t first, last;
  int error;
} rules[MAX_RULES];
static int rule_count;

static int by_rules(enum mu_sys call, uint64_t index) {
  for (int i = 0; i < rule_count; i++)
    if (rules[i].call == call && index >= rules[i].first && index <= rules[i].last) return rules[i].error;
  return 0;
}

static bool parse_rule(const char *text, size_t len, struct rule *out) {
  const char *end = text + len, *colon = memchr(text, ':', len);
  if (!colon) return false;
  int call = 0;
  while (call < MU_SYS_COUNT &&
         (strlen(name[call]) != (size_t)(colon - text) || memcmp(name[call], text, (size_t)(colon - text)) != 0))
    call++;
  if (call == MU_SYS_COUNT) return false;
  char *next;
  out->call = (enum mu_sys)call;
  out->first = out->last = strtoull(colon + 1, &next, 10);
  if (*next == '-') out->last = next[1] == ':' ? (next++, UINT64_MAX) : strtoull(next + 1, &next, 10);
  if (*next != ':') return false;
  out->error = (int)strtol(next + 1, &next, 10);
  return next == end && out->error > 0;
}

void mu_sys_hook_from_text(const char *text) {
  while (*text && rule_count < MAX_RULES) {
    size_t len = strcspn(text, ",");
    if (parse_rule(text, len, &rules[rule_count])) rule_count++;
    text += len + (text[len] == ',');
  }
  if (rule_count) mu_sys_hook = by_rules;
}
