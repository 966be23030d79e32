/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks that run no handlers: by system call, by clone, by _Fork, by an instruction of the program's own; while other
 * threads allocate, while the mesher gives back and packs, and in signal handlers that have interrupted the allocator.
 * The child's heap must be one that it can use, and hold what it held; and nobody waits long.
 */
#include "test.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

enum { CLASSES = 12, OBJECTS = 3000, KEPT = 2000, ROUNDS = 150, LONG_ROUNDS = 3000, THREADS = 3, LONGEST_MS = 20000 };

struct kept {
  unsigned char *p;
  size_t size;
};

static struct kept kept[KEPT]; /* the main thread's; a child finds them as they were */
static struct rng rng;
static bool stop;
static volatile sig_atomic_t in_handler_child; /* and it goes on where it was interrupted */

/* Fills classes and empties them again. */
static void swing(void **objects, size_t n) {
  for (size_t c = 0; c < CLASSES; c++)
    for (size_t i = 0; i < n; i++) {
      CHECK((objects[c * n + i] = malloc(16 + 16 * c)));
      memset(objects[c * n + i], 0x5a, 16 + 16 * c);
    }
  for (size_t i = 0; i < CLASSES * n; i++) free(objects[i]);
}

static void swing_much(void) {
  static void *objects[CLASSES * OBJECTS];
  swing(objects, OBJECTS);
}

static void use_heap(void) {
  alarm(60 * test_slow());
  swing_much();
  swing_much();
  _exit(0);
}

static void *swing_all_the_time(void *unused) {
  void *objects[CLASSES * 200];
  while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
    swing(objects, 200);
    free(opaque(malloc(100000)));
    if (in_handler_child) use_heap();
  }
  return unused;
}

static void keep(size_t i) {
  free(kept[i].p);
  kept[i].size = 16 + rng_below(&rng, 600);
  CHECK((kept[i].p = malloc(kept[i].size)));
  pattern_fill(kept[i].p, kept[i].size, i);
}

static void keep_all(void) {
  for (size_t i = 0; i < KEPT * 4; i++) keep(i % 4 ? rng_below(&rng, KEPT) : i / 4);
}

static void check_kept(const char *where) {
  for (size_t i = 0; i < KEPT; i++)
    if (kept[i].p && pattern_check(kept[i].p, kept[i].size, i) != kept[i].size)
      FAIL("%s: object %zu of %zu bytes at %p", where, i, kept[i].size, (void *)kept[i].p);
}

/* ---- ways to fork ------------------------------------------------------------------------------------------------ */

static pid_t by_clone_call(void) {
  return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static pid_t by_underscore(void) {
  return _Fork();
}

static pid_t by_instruction(void) {
#if defined(__x86_64__)
  long r;
  register long r10 __asm__("r10") = 0;
  register long r8 __asm__("r8") = 0;
  __asm__ volatile("syscall"
                   : "=a"(r)
                   : "a"((long)SYS_clone), "D"((long)SIGCHLD), "S"(0L), "d"(0L), "r"(r10), "r"(r8)
                   : "rcx", "r11", "memory");
  return (pid_t)r;
#else
  return by_clone_call();
#endif
}

static void (*in_child)(void);

static int run_in_child(void *unused) {
  (void)unused;
  in_child();
  return 0;
}

/* The child does not come back here. */
static pid_t by_clone_function(void) {
  static char stack[1 << 18];
  return clone(run_in_child, stack + sizeof stack, SIGCHLD, NULL);
}

static void wait_for(pid_t pid, const char *how) {
  int status;
  pid_t got;
  do got = waitpid(pid, &status, 0);
  while (got < 0 && errno == EINTR);
  CHECK(got == pid);
  CHECKF(status == 0, "%s: status %x", how, (unsigned)status);
}

static void use_and_check_heap(void) {
  check_kept("a child");
  keep_all();
  check_kept("a child, later");
  use_heap();
}

static void fork_by(pid_t (*way)(void), const char *how, void (*then)(void)) {
  in_child = then;
  pid_t pid = way();
  CHECKF(pid >= 0, "%s", how);
  if (pid == 0) then();
  wait_for(pid, how);
}

static void fork_each_way(int round) {
  fork_by(by_clone_call, "syscall", use_and_check_heap);
  fork_by(by_underscore, "_Fork", use_and_check_heap);
  fork_by(by_clone_function, "clone", use_and_check_heap);
  if (round % 5 == 0) fork_by(by_instruction, "an instruction", use_heap); /* a run that was in a pass reads as zeros */
}

/* ---- in signal handlers ------------------------------------------------------------------------------------------ */

static volatile sig_atomic_t handled;
static volatile uint64_t longest_ns;

/* When the last of this thread's ended. The timer is faster than the handler, so it would be interrupted again before
 * it has gone one step, and never let go of what it holds: others would wait for that for ever, with any allocator. */
static __thread uint64_t last_ended;
enum { STEP_NS = 1000000 };

/* In turn: ways to fork, and whether the child goes on where it was interrupted. */
static void fork_in_handler(int signal) {
  int saved = errno;
  (void)signal;
  if (now_ns() - last_ended < STEP_NS) return;
  unsigned turn = (unsigned)handled++;
  uint64_t began = now_ns();
  pid_t pid = turn % 3 == 0 ? by_underscore() : turn % 3 == 1 ? by_clone_call() : fork();
  uint64_t took = now_ns() - began;
  if (pid == 0 && turn % 2 == 0) _exit(0);
  if (pid == 0) {
    struct itimerval never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &never, NULL);
    in_handler_child = 1;
  } else {
    CHECK(pid > 0);
    if (took > longest_ns) longest_ns = took;
    wait_for(pid, "in a signal handler");
  }
  last_ended = now_ns();
  errno = saved;
}

static void end_handler_child(void) {
  if (in_handler_child) use_and_check_heap();
}

static void interrupt_allocator(int forks) {
  struct itimerval often = {{0, 500}, {0, 500}};
  struct sigaction action = {.sa_handler = fork_in_handler, .sa_flags = SA_RESTART};
  CHECK(sigaction(SIGALRM, &action, NULL) == 0);
  in_handler_child = 0;
  handled = 0;
  longest_ns = 0;
  CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
  while (handled < forks && !in_handler_child) {
    void *some[256];
    for (size_t i = 0; i < 256; i++) some[i] = malloc(16 + (size_t)handled % 3 * 16);
    for (size_t i = 0; i < 256; i++) free(some[i]);
    end_handler_child();
    keep(rng_below(&rng, KEPT)); /* may be interrupted: not looked at in a child that is in the midst of it */
    end_handler_child();
  }
  struct itimerval never = {{0, 0}, {0, 0}};
  CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
  end_handler_child();
  CHECKF(longest_ns / 1000000 < LONGEST_MS, "a fork took %llu ms", (unsigned long long)longest_ns / 1000000);
  printf("%d forks in a handler, the longest took %llu us\n", (int)handled, (unsigned long long)longest_ns / 1000);
}

int main(int argc, char **argv) {
  if (argc == 1) { /* again, with a mesher that works all the time */
    CHECK(setenv("MESH_UFFD_TEST_EAGER", "1", 1) == 0);
    execl("/proc/self/exe", argv[0], "eager", (char *)NULL);
    FAIL("execl");
  }
  int rounds = test_is_long() ? LONG_ROUNDS : ROUNDS;
  pthread_t threads[THREADS];
  rng = rng_from(test_begin(), 0);
  test_watchdog(test_is_long() ? 1200 : 200);
  free(opaque(malloc(16 << 20)));
  keep_all();
  for (int i = 0; i < rounds; i++) {
    swing_much();
    usleep((useconds_t)rng_below(&rng, 5000));
    fork_by(by_clone_call, "alone", use_and_check_heap);
  }
  interrupt_allocator(rounds * 2);
  for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, swing_all_the_time, NULL) == 0);
  for (int i = 0; i < rounds / 5; i++) {
    keep_all();
    fork_each_way(i);
  }
  interrupt_allocator(rounds * 2);
  __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
  for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  check_kept("at the end");
  puts("passed");
  return 0;
}
