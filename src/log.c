/* SPDX-License-Identifier: Apache-2.0 */
#include "src/log.h"
#include "src/options.h"
#include "src/sys.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct out {
  char *at, *end;
};

static void put(struct out *o, const char *s, size_t n, size_t width, bool left, char pad) {
  size_t blanks = width > n ? width - n : 0;
  if (!left)
    for (; blanks; blanks--)
      if (o->at < o->end) *o->at++ = pad;
  for (size_t i = 0; i < n; i++)
    if (o->at < o->end) *o->at++ = s[i];
  for (; blanks; blanks--)
    if (o->at < o->end) *o->at++ = pad;
}

static size_t digits(char *end, uint64_t v, unsigned base) {
  char *p = end;
  do {
    *--p = "0123456789abcdef"[v % base];
    v /= base;
  } while (v);
  return (size_t)(end - p);
}

static size_t fixed(char *end, double v, unsigned precision) {
  uint64_t scale = 1;
  for (unsigned i = 0; i < precision; i++) scale *= 10;
  bool negative = v < 0;
  uint64_t n = (uint64_t)((negative ? -v : v) * (double)scale + 0.5);
  char *p = end;
  if (precision) {
    for (unsigned i = 0; i < precision; i++, n /= 10) *--p = (char)('0' + n % 10);
    *--p = '.';
  }
  p -= digits(p, n, 10);
  if (negative) *--p = '-';
  return (size_t)(end - p);
}

size_t mu_vformat(char *buf, size_t room, const char *f, va_list args) {
  struct out o = {buf, buf + room - 1};
  for (; *f; f++) {
    if (*f != '%') {
      put(&o, f, 1, 0, false, ' ');
      continue;
    }
    bool left = false, precise = false;
    char pad = ' ', tmp[64], *end = tmp + sizeof tmp;
    size_t width = 0;
    unsigned precision = 1, longs = 0;
    for (f++; *f == '-' || *f == '0'; f++) *f == '-' ? (left = true) : (pad = '0');
    for (; *f >= '0' && *f <= '9'; f++) width = width * 10 + (size_t)(*f - '0');
    if (*f == '.')
      for (f++, precise = true, precision = 0; *f >= '0' && *f <= '9'; f++)
        precision = precision * 10 + (unsigned)(*f - '0');
    for (; *f == 'l' || *f == 'z'; f++) longs++;
    switch (*f) {
    case 's': {
      const char *s = va_arg(args, const char *);
      size_t n = strlen(s);
      put(&o, s, precise && precision < n ? precision : n, width, left, ' ');
      break;
    }
    case 'd': {
      int64_t v = longs ? va_arg(args, long) : va_arg(args, int);
      size_t n = digits(end, v < 0 ? 0 - (uint64_t)v : (uint64_t)v, 10);
      if (v < 0) *(end - ++n) = '-';
      put(&o, end - n, n, width, left, pad);
      break;
    }
    case 'u':
    case 'x': {
      uint64_t v = longs ? va_arg(args, unsigned long) : va_arg(args, unsigned);
      size_t n = digits(end, v, *f == 'u' ? 10 : 16);
      put(&o, end - n, n, width, left, pad);
      break;
    }
    case 'p': {
      size_t n = digits(end, (uint64_t)(uintptr_t)va_arg(args, void *), 16);
      *(end - ++n) = 'x';
      *(end - ++n) = '0';
      put(&o, end - n, n, width, left, ' ');
      break;
    }
    case 'f': {
      size_t n = fixed(end, va_arg(args, double), precision);
      put(&o, end - n, n, width, left, ' ');
      break;
    }
    default:
      put(&o, f, 1, 0, false, ' ');
    }
  }
  *o.at = 0;
  return (size_t)(o.at - buf);
}

size_t mu_format(char *buf, size_t room, const char *format, ...) {
  va_list args;
  va_start(args, format);
  size_t n = mu_vformat(buf, room, format, args);
  va_end(args);
  return n;
}

static MU_INITIAL_EXEC __thread bool has_own_descriptors;

void mu_log_from_outside(void) {
  has_own_descriptors = true;
}

static void print_to(int fd, const char *text, size_t len) {
  while (len) {
    ssize_t n = mu_write(fd, text, len);
    if (n <= 0) return;
    text += n;
    len -= (size_t)n;
  }
}

enum { PATIENCE_MS = 200 };

/* A pipe that nobody reads must not hold up the library: room for a page is room for any message. */
static bool has_room(int fd) {
  struct pollfd p = {.fd = fd, .events = POLLOUT};
  return mu_poll(&p, 1, PATIENCE_MS) == 1 && (p.revents & POLLOUT);
}

/*
 * The program's standard error, for a thread whose descriptors are not the program's: the main thread's descriptor
 * itself, so that what the program writes afterwards comes behind it. Where that is not to be had, its file opened
 * anew: the program may write over what is put there.
 */
static int program_stderr(void) {
  int process = (int)mu_sys_call(MU_SYS_pidfd_open, mu_pid(), 0, 0, 0, 0, 0);
  int fd = process < 0 ? process : (int)mu_sys_call(MU_SYS_pidfd_getfd, process, STDERR_FILENO, 0, 0, 0, 0);
  if (process >= 0) mu_close(process);
  if (fd >= 0) return fd;
  return mu_open("/proc/self/fd/2", O_WRONLY | O_APPEND | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
}

void mu_print(const char *text, size_t len) {
  if (!has_own_descriptors) {
    print_to(STDERR_FILENO, text, len);
    return;
  }
  int fd = program_stderr();
  if (fd < 0) return;
  if (has_room(fd)) print_to(fd, text, len);
  mu_close(fd);
}

static void vlog(const char *format, va_list args) {
  char line[512];
  size_t n = mu_format(line, sizeof line, "mesh-uffd: ");
  n += mu_vformat(line + n, sizeof line - n - 1, format, args);
  line[n++] = '\n';
  mu_print(line, n);
}

void mu_log(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vlog(format, args);
  va_end(args);
}

void mu_die(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vlog(format, args);
  va_end(args);
  abort();
}

void mu_misuse(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vlog(format, args);
  va_end(args);
  if (mu_options.abort) abort();
}

void mu_assert_failed(const char *what, const char *file, int line) {
  mu_die("internal error: %s is false at %s:%d; please report it", what, file, line);
}
