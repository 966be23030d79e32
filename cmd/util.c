/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/cmd.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

__attribute__((format(printf, 1, 0))) static void say(const char *format, va_list args) {
  fflush(stdout);
  fputs("mesh-uffd: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
}

void complain(const char *format, ...) {
  va_list args;
  va_start(args, format);
  say(format, args);
  va_end(args);
}

void die(enum status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  say(format, args);
  va_end(args);
  exit((int)status);
}

void die_usage(const char *command, const char *format, ...) {
  va_list args;
  va_start(args, format);
  say(format, args);
  va_end(args);
  fprintf(stderr, "See 'mesh-uffd %s --help'.\n", command);
  exit(USAGE);
}

void finish_output(FILE *to, const char *name) {
  bool failed = ferror(to);
  if (fflush(to) != 0) die(FAILED, "%s cannot be written: %s", name, strerror(errno));
  if (failed) die(FAILED, "%s cannot be written", name); /* by which call is not known any more */
}

bool parse_number(const char *text, uint64_t low, uint64_t high, uint64_t *value) {
  char *end;
  if (*text < '0' || *text > '9') return false;
  errno = 0;
  *value = strtoull(text, &end, 10);
  return !*end && errno == 0 && *value >= low && *value <= high;
}

bool parse_seconds(const char *text, uint64_t *ms) {
  char *end;
  if ((*text < '0' || *text > '9') && *text != '.') return false;
  double s = strtod(text, &end);
  if (*end || !(s >= 0.01 && s <= 86400)) return false;
  *ms = (uint64_t)(s * 1000);
  return true;
}

int parse_pid(const char *command, const char *text) {
  uint64_t pid;
  if (!parse_number(text, 1, INT32_MAX, &pid)) die_usage(command, "'%s' is not the number of a process", text);
  return (int)pid;
}

bool looks_option(const struct command *command, int option, const char *value, struct looks *looks) {
  switch (option) {
  case 'i':
    if (!parse_seconds(value, &looks->interval_ms))
      die_usage(command->name, "'%s' is not 0.01 to 86400 seconds", value);
    return true;
  case 'n':
    if (!parse_number(value, 1, INT32_MAX, &looks->count))
      die_usage(command->name, "'%s' is not a number of times", value);
    return true;
  case 'h':
    fputs(command->help, stdout);
    return false;
  default:
    die_usage(command->name, "wrong option");
  }
}

char *read_file(const char *path, size_t *length) {
  size_t have = 0, room = 8192;
  int fd = open(path, O_RDONLY | O_CLOEXEC), error;
  if (fd < 0) return NULL;
  char *text = malloc(room + 1);
  ssize_t n = -1;
  while (text && (n = read(fd, text + have, room - have)) > 0) {
    have += (size_t)n;
    if (have < room) continue;
    room *= 2;
    char *more = realloc(text, room + 1);
    if (!more) free(text);
    text = more;
  }
  error = text ? errno : ENOMEM;
  close(fd);
  if (!text || n < 0) {
    free(text);
    errno = error;
    return NULL;
  }
  text[have] = 0;
  if (length) *length = have;
  return text;
}

static const char *behind(const char *text, const char *name) {
  size_t length = strlen(name);
  for (; text; text = strchr(text, '\n'), text = text ? text + 1 : NULL)
    if (strncmp(text, name, length) == 0) return text + length;
  return NULL;
}

bool find_number(const char *text, const char *name, unsigned base, uint64_t *value) {
  const char *at = behind(text, name);
  char *end;
  if (!at) return false;
  *value = strtoull(at, &end, (int)base);
  return end != at;
}

bool find_line(const char *text, const char *name, char *out, size_t room) {
  const char *at = behind(text, name);
  if (!at) return false;
  at += strspn(at, " \t");
  snprintf(out, room, "%.*s", (int)strcspn(at, "\n"), at);
  return true;
}

uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

void sleep_ms(uint64_t ms) {
  struct timespec t = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
  nanosleep(&t, NULL); /* ends early when interrupted */
}

double mib(uint64_t bytes) {
  return (double)bytes / (1024.0 * 1024.0);
}

volatile sig_atomic_t interrupted;

static void note_interrupt(int signal) {
  interrupted = signal;
}

void catch_interrupts(void) {
  struct sigaction action = {.sa_handler = note_interrupt};
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
}
