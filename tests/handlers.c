/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signal handlers that allocate, in threads that they interrupt in malloc and free as well: a timer of SIGNAL_US for
 * the main thread, and one more thread that is sent signals. Every object has a pattern. A handler may come at any
 * place of the slow ways. At the three instructions in which a fast way takes a pointer off a vector, one that keeps
 * what it allocates may be given the same, as with every malloc that has lists by thread: so here it frees what it
 * allocates, newest first. With MESH_UFFD_CHECK=1 there are no fast ways, and handlers keep objects, and free others'
 * in any order. Handlers that jump out of malloc come last: the thread goes on.
 */
#include "test.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/wait.h>

enum { SIGNAL_US = 40, OBJECTS = 3000, KEPT = 32, MS = 1500, FORKS = 20 };

static uint64_t seed;
static bool may_keep; /* handlers keep objects */
static _Atomic uint64_t handled, refused;
static _Atomic bool stop;

static const size_t sizes[] = {16, 40, 100, 256, 700, 2000, 5000, 12000, 40000, 200000};

static void make(struct patterned *o, struct rng *rng) {
  size_t size = sizes[rng_below(rng, 3) ? rng_below(rng, 5) : rng_below(rng, sizeof sizes / sizeof *sizes)];
  o->p = rng_below(rng, 8) ? malloc(size) : aligned_alloc(64, size);
  if (!o->p) {
    refused++;
    return;
  }
  patterned_begin(o, size, rng_next(rng));
}

static void resize(struct patterned *o, struct rng *rng) {
  if (!patterned_resize(o, sizes[rng_below(rng, sizeof sizes / sizeof *sizes)])) refused++;
}

/* ---- handlers ---- */

static __thread struct patterned kept[KEPT];
static __thread uint64_t calls;

static void handler(int number) {
  int error = errno;
  (void)number;
  struct rng rng = rng_from(seed, ++calls * 2 + 1);
  handled++;
  if (may_keep) {
    struct patterned *o = &kept[rng_below(&rng, KEPT)];
    if (o->p && rng_below(&rng, 2)) resize(o, &rng);
    if (o->p) patterned_discard(o);
    make(o, &rng);
  } else {
    struct patterned o = {NULL, 0, 0};
    make(&o, &rng);
    if (o.p) patterned_discard(&o);
  }
  errno = error;
}

static void handle(int number, void (*f)(int)) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = f;
  action.sa_flags = SA_RESTART;
  sigfillset(&action.sa_mask);
  CHECK(sigaction(number, &action, NULL) == 0);
}

static timer_t timer;

static void begin_timer(void) {
  struct sigevent event;
  memset(&event, 0, sizeof event);
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGUSR1;
  struct itimerspec every = {{0, SIGNAL_US * 1000L}, {0, SIGNAL_US * 1000L}};
  CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &every, NULL) == 0);
}

/* ---- what they interrupt ---- */

static struct patterned objects[2][OBJECTS];

static void *work(void *argument) {
  struct patterned *mine = argument;
  struct rng rng = rng_from(seed, mine == objects[0] ? 2 : 4);
  while (!stop) {
    for (int i = 0; i < OBJECTS / 2; i++) {
      struct patterned *o = &mine[rng_below(&rng, OBJECTS)];
      if (!o->p)
        make(o, &rng);
      else if (rng_below(&rng, 4))
        patterned_discard(o);
      else
        resize(o, &rng);
    }
    if (rng_below(&rng, 4)) continue;
    for (int i = 0; i < OBJECTS; i++) patterned_discard(&mine[i]);
  }
  for (int i = 0; i < OBJECTS; i++) patterned_discard(&mine[i]);
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, NULL);
  for (int i = 0; i < KEPT; i++) patterned_discard(&kept[i]);
  return NULL;
}

static void fork_a_child(void) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (!child) {
    struct rng rng = rng_from(seed, 9);
    for (int i = 0; i < OBJECTS; i++) {
      struct patterned o;
      make(&o, &rng);
      patterned_discard(&o);
    }
    _exit(0);
  }
  int status;
  while (waitpid(child, &status, 0) < 0) CHECK(errno == EINTR);
  CHECKF(status == 0, "a child ended with %#x", (unsigned)status);
}

static void *forks(void *argument) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, NULL);
  for (int i = 0; i < FORKS && !stop; i++) {
    fork_a_child();
    sleep_ns(20000000);
  }
  return argument;
}

/* ---- jumps out ---- */

static sigjmp_buf out;
static volatile sig_atomic_t jumps;

static void jump(int number) {
  (void)number;
  if (jumps) siglongjmp(out, 1);
}

/* Out of malloc, as it may be, thousands of times. What was under way is lost, and may be half done: so only that
 * nothing hangs is shown, in a process of its own. */
static void jump_about(void) {
  struct rng rng = rng_from(seed, 11);
  handle(SIGUSR1, jump);
  begin_timer();
  uint64_t end = now_ns() + 300000000;
  while (now_ns() < end) {
    if (sigsetjmp(out, 1) == 0) {
      jumps = 1;
      for (int i = 0; i < 1000; i++) free(malloc(sizes[rng_below(&rng, sizeof sizes / sizeof *sizes)]));
    }
    jumps = 0;
  }
  _exit(0);
}

int main(void) {
  seed = test_begin();
  struct mesh_api api = mesh_api_find();
  const char *level = getenv("MESH_UFFD_CHECK");
  may_keep = level && strcmp(level, "0") != 0;
  test_watchdog(60);
  handle(SIGUSR1, handler);
  handle(SIGUSR2, handler);
  pthread_t other, forker;
  CHECK(pthread_create(&other, NULL, work, objects[1]) == 0);
  CHECK(pthread_create(&forker, NULL, forks, NULL) == 0);
  begin_timer();
  uint64_t end = now_ns() + (uint64_t)(test_is_long() ? 20 : 1) * MS * 1000000;
  struct rng rng = rng_from(seed, 6);
  /* The main thread works in turns, and sends the other thread signals in between. */
  while (now_ns() < end || handled <= 1000) { /* on a slow machine it takes its time */
    for (int i = 0; i < 200; i++) {
      struct patterned *o = &objects[0][rng_below(&rng, OBJECTS)];
      o->p ? patterned_discard(o) : make(o, &rng);
    }
    pthread_kill(other, SIGUSR2);
  }
  stop = true;
  CHECK(pthread_join(other, NULL) == 0 && pthread_join(forker, NULL) == 0);
  timer_delete(timer);
  printf("%llu handlers, %llu times without memory\n", (unsigned long long)handled, (unsigned long long)refused);
  CHECKF(refused * 100 < handled, "memory for handlers is out");
  if (api.present) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) jump_about();
    int status;
    while (waitpid(child, &status, 0) < 0) CHECK(errno == EINTR);
    printf("jumps out of malloc: status %#x\n", (unsigned)status);
  }
  return 0;
}
