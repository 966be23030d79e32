/* SPDX-License-Identifier: Apache-2.0 */
/* Runs unit tests one after the other, each in a process of its own; arguments: parts of "suite/name" to run. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SKIPPED = 77, FAILED = 1, PATIENCE_S = 120 };

static struct runner_test *tests, **last = &tests;

void runner_add(struct runner_test *test) {
  *last = test;
  last = &test->next;
}

void runner_fail(const char *file, int line, const char *what, const char *format, ...) {
  va_list args;
  va_start(args, format);
  fprintf(stderr, "%s:%d: %s:", file, line, what);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  _exit(FAILED);
}

void runner_skip(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fputs("skipped: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  _exit(SKIPPED);
}

/* The suite's options apply where the test has none of its own. */
static struct runner_options options_of(const struct runner_test *test) {
  struct runner_options o = test->options;
  for (const struct runner_test *suite = tests; suite; suite = suite->next) {
    if (suite->name || strcmp(suite->suite, test->suite) != 0) continue;
    if (!o.init) o.init = suite->options.init;
    if (!o.fini) o.fini = suite->options.fini;
    if (!o.timeout) o.timeout = suite->options.timeout;
    if (!o.signal) o.signal = suite->options.signal;
  }
  return o;
}

static _Noreturn void be_test(const struct runner_test *test, const struct runner_options *o) {
  setpgid(0, 0); /* what it starts ends with it */
  alarm(o->timeout ? o->timeout : PATIENCE_S);
  if (o->init) o->init();
  test->run();
  if (o->fini) o->fini();
  fflush(NULL);
  _exit(0);
}

static int run(const struct runner_test *test) {
  struct runner_options o = options_of(test);
  int status;
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) be_test(test, &o);
  if (child < 0 || waitpid(child, &status, 0) != child) return FAILED;
  kill(-child, SIGKILL);
  if (WIFEXITED(status) && (WEXITSTATUS(status) == SKIPPED || !o.signal)) return WEXITSTATUS(status);
  if (WIFSIGNALED(status) && WTERMSIG(status) == o.signal) return 0;
  if (WIFSIGNALED(status)) fprintf(stderr, "%s/%s: ended by signal %d\n", test->suite, test->name, WTERMSIG(status));
  return FAILED;
}

static bool chosen(const struct runner_test *test, char *const *parts) {
  char name[256];
  snprintf(name, sizeof name, "%s/%s", test->suite, test->name);
  for (char *const *part = parts; *part; part++)
    if (strstr(name, *part)) return true;
  return !*parts;
}

int main(int argc, char **argv) {
  unsigned passed = 0, failed = 0, skipped = 0;
  (void)argc;
  for (const struct runner_test *test = tests; test; test = test->next) {
    if (!test->name || !chosen(test, argv + 1)) continue;
    int result = run(test);
    if (result && result != SKIPPED) fprintf(stderr, "FAIL: %s/%s\n", test->suite, test->name);
    *(result == 0 ? &passed : result == SKIPPED ? &skipped : &failed) += 1;
  }
  printf("%u passed, %u failed, %u skipped\n", passed, failed, skipped);
  return failed || !passed ? FAILED : 0;
}
