/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program, its limits or its sandbox can do to the library behind its back: hostile CASE [ARGUMENT...]; see
 * cases[] at the end and tests/hostile.sh. Each case keeps the program's own data under a pattern and fails when a byte
 * of it is wrong, when malloc breaks its contract, or when the watchdog finds it hanging. Silent unless it fails.
 *
 * Launchers (limit, seccomp, nofile) change the process first and then run another case of this program: those after a
 * new exec, so that the library finds the change when it starts.
 */
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#ifndef SYS_userfaultfd
#define SYS_userfaultfd 323
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#define SYS_io_uring_enter 426
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif

enum { WATCHDOG_SECONDS = 100 };

__attribute__((noreturn)) static void skip(const char *why) {
  dprintf(STDERR_FILENO, "%s: %s\n", why, strerror(errno));
  _exit(TEST_SKIPPED);
}

static uint64_t seed;

int capset(void *header, const void *data); /* libc has it, but no header of libc's */

static void set_watchdog(void) {
  alarm((test_is_long() ? 4U : 1U) * WATCHDOG_SECONDS * test_slow()); /* its signal ends the process */
}

/* How long the heart of a case goes on. */
static uint64_t duration_ns(unsigned ms) {
  return (uint64_t)ms * 1000000u * (test_is_long() ? 10 : 1) * test_slow();
}

static void check_exit(pid_t child, const char *what) {
  int status;
  CHECK(child > 0);
  while (waitpid(child, &status, 0) < 0) CHECK(errno == EINTR);
  CHECKF(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s ended with status %#x", what, (unsigned)status);
}

/* ---- the worker: a sparse heap of many classes, two threads that change it, a child that checks its copy --------- */

enum { SLOTS = 24000, THREADS = 2, KEEP_ONE_IN = 8 };

static struct patterned objects[SLOTS]; /* slot i belongs to thread i % THREADS */
static size_t slots = SLOTS;

static const uint32_t sizes[] = {16,  16,  24,  32,  48,   64,   64,   80,   100,  128,  128,   160,   256,
                                 272, 300, 320, 512, 1000, 1024, 1500, 2000, 3000, 5000, 20000, 40000, 300000};
enum { SIZES = sizeof sizes / sizeof *sizes, SMALL_SIZES = SIZES - 3 };

static _Atomic bool out_of_memory; /* somebody was refused memory: then only what exists is checked */
static _Atomic bool stop;

static void make(struct patterned *o, struct rng *rng, size_t choices) {
  uint32_t size = sizes[rng_below(rng, choices)];
  bool zeroed = rng_below(rng, 4) == 0;
  errno = 0;
  o->p = zeroed ? calloc(1, size) : malloc(size);
  if (!o->p) {
    CHECKF(errno == ENOMEM, "malloc(%u)", size);
    out_of_memory = true;
    return;
  }
  if (zeroed)
    for (uint32_t i = 0; i < size; i++) CHECKF(o->p[i] == 0, "calloc(1, %u) at %p, byte %u", size, (void *)o->p, i);
  patterned_begin(o, size, rng_next(rng));
}

static void resize(struct patterned *o, struct rng *rng) {
  if (!patterned_resize(o, sizes[rng_below(rng, SIZES)])) out_of_memory = true;
}

static void change(struct patterned *o, struct rng *rng) {
  if (!o->p) {
    if (rng_below(rng, KEEP_ONE_IN) == 0) make(o, rng, SMALL_SIZES);
    return;
  }
  switch (rng_below(rng, 8)) {
  case 0:
    resize(o, rng);
    return;
  case 1:
    o->seed = rng_next(rng); /* a store into what may be meshed, or being meshed */
    pattern_fill(o->p, o->size, o->seed);
    return;
  case 2:
  case 3:
    patterned_discard(o);
    return;
  default:
    patterned_check(o);
  }
}

static void *mutate(void *argument) {
  size_t me = (size_t)(uintptr_t)argument;
  struct rng rng = rng_from(seed, 100 + me);
  while (!stop) {
    for (int i = 0; i < 300 && !stop; i++) change(&objects[me + THREADS * rng_below(&rng, slots / THREADS)], &rng);
    sleep_ns(2000000); /* passes want a moment of quiet */
  }
  return NULL;
}

static void verify_all(void) {
  for (size_t i = 0; i < slots; i++) patterned_check(&objects[i]);
}

static void build(void) {
  struct rng rng = rng_from(seed, 1);
  for (size_t i = 0; i < slots; i++) make(&objects[i], &rng, i % 100 ? SMALL_SIZES : SIZES);
  for (size_t i = 0; i < slots; i++)
    if (rng_below(&rng, KEEP_ONE_IN)) patterned_discard(&objects[i]);
}

static void discard_all(void) {
  for (size_t i = 0; i < slots; i++) patterned_discard(&objects[i]);
}

/* A child may do with its copy what it likes. */
static void child_checks(unsigned changes) {
  set_watchdog();
  verify_all();
  struct rng rng = rng_from(seed, (uint64_t)getpid());
  for (unsigned i = 0; i < changes; i++) change(&objects[rng_below(&rng, slots)], &rng);
  verify_all();
  _exit(0);
}

static void fork_and_check(void) {
  pid_t child = fork();
  if (child == 0) child_checks(2000);
  if (child < 0) {
    CHECK(errno == EAGAIN || errno == ENOMEM); /* limits of the case */
    return;
  }
  check_exit(child, "a forked child");
}

static unsigned rounds, rounds_needed; /* of those that count them: on a slow machine they take their time */

/* between: what the case does all the time while the threads go on; may be NULL. */
static void work(unsigned ms, void (*between)(void)) {
  pthread_t threads[THREADS];
  bool started[THREADS] = {false};
  build();
  stop = false;
  for (size_t i = 0; i < THREADS; i++)
    started[i] = pthread_create(&threads[i], NULL, mutate, (void *)(uintptr_t)i) == 0;
  uint64_t end = now_ns() + duration_ns(ms);
  do {
    if (between) between();
    sleep_ns(1000000);
  } while (now_ns() < end || rounds < rounds_needed);
  stop = true;
  for (size_t i = 0; i < THREADS; i++)
    if (started[i]) CHECK(pthread_join(threads[i], NULL) == 0);
  verify_all();
  fork_and_check();
  discard_all();
}

/* worker [MILLISECONDS [SLOTS]] */
static void run_worker(char **arguments) {
  unsigned ms = arguments[0] ? (unsigned)strtoul(arguments[0], NULL, 10) : 300;
  if (arguments[0] && arguments[1]) slots = strtoul(arguments[1], NULL, 10);
  CHECK(slots >= THREADS && slots <= SLOTS);
  work(ms, NULL);
}

/* ---- descriptors --------------------------------------------------------------------------------------------------
 */

static int own_file = -1; /* with known contents, beyond the numbers that are closed */

static void open_own_file(int at_least) {
  static const char text[] = "the program's own";
  int pipe_ends[2];
  CHECK(pipe(pipe_ends) == 0 && write(pipe_ends[1], text, sizeof text) == (ssize_t)sizeof text);
  own_file = fcntl(pipe_ends[0], F_DUPFD, at_least);
  CHECK(own_file >= 0 && close(pipe_ends[0]) == 0 && close(pipe_ends[1]) == 0);
}

static void check_own_file(void) {
  char text[32];
  CHECK(read(own_file, text, sizeof text) == 18 && strcmp(text, "the program's own") == 0 && close(own_file) == 0);
}

/* Nothing but what the program opened is open. */
static void check_closed(int from, int to) {
  for (int fd = from; fd < to; fd++)
    CHECKF(fd == own_file || (fcntl(fd, F_GETFD) < 0 && errno == EBADF), "descriptor %d is not ours", fd);
}

static void close_by_range(void) {
  if (syscall(SYS_close_range, 3U, ~0U, 0U) < 0)
    for (int fd = 3; fd < 64; fd++) close(fd);
  check_closed(3, 64);
}

static void close_each(void) {
  for (int fd = 0; fd < 1024; fd++)
    if (fd != own_file && fd != STDERR_FILENO) close(fd);
}

/* Whatever had a low number is something else now; the files keep their contents, and the position is ours alone. */
static void cover_low_numbers(void) {
  static int source = -1;
  if (source < 0) {
    source = open("/dev/zero", O_RDONLY);
    CHECK(source >= 0);
    source = fcntl(source, F_DUPFD, 500);
  }
  for (int fd = 3; fd < 40; fd++) CHECK(dup2(source, fd) == fd);
  for (int fd = 3; fd < 40; fd++) {
    char bytes[4] = {1, 1, 1, 1};
    CHECKF(read(fd, bytes, 4) == 4 && !bytes[0] && !bytes[3], "descriptor %d", fd);
  }
}

static void run_close_range(char **arguments) {
  (void)arguments;
  work(600, close_by_range);
}

static void run_close_loop(char **arguments) {
  (void)arguments;
  open_own_file(600);
  work(600, close_each);
  check_closed(3, 1024);
  check_own_file();
}

static void run_dup2(char **arguments) {
  (void)arguments;
  work(600, cover_low_numbers);
}

/* The lowest free number is the program's to predict, whatever the library gives back or meshes. */
static void predict_number(void) {
  int fd = dup(STDERR_FILENO);
  CHECKF(fd == 3, "the lowest free descriptor is %d", fd);
  CHECK(close(fd) == 0);
}

static void run_numbers(char **arguments) {
  (void)arguments;
  syscall(SYS_close_range, 3U, ~0U, 0U);
  work(1200, predict_number);
  check_closed(3, 64);
}

/* Across exec: none of ours is inherited. */
static void run_exec(char **arguments) {
  (void)arguments;
  static char name[] = "hostile", argument[] = "nothing-open";
  char *again[] = {name, argument, NULL};
  close_by_range();
  work(500, NULL);
  execv("/proc/self/exe", again);
  FAIL("exec");
}

static void run_nothing_open(char **arguments) {
  (void)arguments;
  check_closed(3, 1024);
}

/* ---- limits -------------------------------------------------------------------------------------------------------
 */

static const struct limit_name {
  const char *name;
  int resource;
} limits[] = {{"as", RLIMIT_AS},       {"data", RLIMIT_DATA},       {"fsize", RLIMIT_FSIZE},
              {"nproc", RLIMIT_NPROC}, {"memlock", RLIMIT_MEMLOCK}, {"stack", RLIMIT_STACK}};

__attribute__((noreturn)) static void run_again(char **arguments) {
  CHECK(arguments[0] != NULL);
  execv("/proc/self/exe", arguments - 1); /* argv[0] is whatever comes before */
  FAIL("exec");
}

/* limit NAME BYTES CASE... */
static void run_limit(char **arguments) {
  CHECK(arguments[0] && arguments[1]);
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
    if (strcmp(limits[i].name, arguments[0]) == 0) {
      rlim_t value = strtoull(arguments[1], NULL, 10);
      CHECK(syscall(SYS_prlimit64, 0, limits[i].resource, &(struct rlimit){value, value}, NULL) == 0);
      run_again(arguments + 2);
    }
  FAIL("no limit %s", arguments[0]);
}

/* nofile N: in the process itself, since nothing can be loaded below 4. */
static void run_nofile(char **arguments) {
  rlim_t value = strtoull(arguments[0] ? arguments[0] : "3", NULL, 10);
  CHECK(setrlimit(RLIMIT_NOFILE, &(struct rlimit){value, value}) == 0);
  work(120, NULL);
}

enum { EDGE = 64, MOST_BLOCKS = 400000 };
static struct patterned blocks[MOST_BLOCKS];

static void mark_block(struct patterned *o) {
  size_t edge = o->size < EDGE ? o->size : EDGE;
  pattern_fill(o->p, edge, o->seed);
  pattern_fill(o->p + o->size - edge, edge, o->seed);
}

static void check_block(const struct patterned *o) {
  size_t edge = o->size < EDGE ? o->size : EDGE;
  CHECK_PATTERN(o->p + o->size - edge, edge, o->seed);
  if (o->size >= 2 * EDGE) CHECK_PATTERN(o->p, edge, o->seed);
}

/* Until malloc says no, which it must say in the ordinary way. Returns how many bytes there were. */
static size_t fill_up(struct rng *rng, size_t *count) {
  static const uint32_t of[] = {48, 200, 1000, 4000, 30000, 70000, 1000000, 3000000};
  size_t bytes = 0;
  unsigned refused = 0;
  for (*count = 0; *count < MOST_BLOCKS && refused < 8;) {
    struct patterned *o = &blocks[*count];
    o->size = of[refused ? 7 - refused : rng_below(rng, 8)];
    o->seed = rng_next(rng);
    errno = 0;
    o->p = malloc(o->size);
    if (!o->p) {
      CHECKF(errno == ENOMEM, "malloc(%zu)", o->size);
      refused++; /* smaller ones may still be there */
      continue;
    }
    bytes += o->size;
    mark_block(o);
    ++*count;
  }
  CHECKF(refused, "no end of memory after %zu MB", bytes >> 20);
  return bytes;
}

static void empty_out(size_t count, unsigned keep_one_in) {
  for (size_t i = 0; i < count; i++) {
    if (!blocks[i].p || i % keep_one_in == keep_one_in - 1) continue;
    check_block(&blocks[i]);
    free(blocks[i].p);
    blocks[i].p = NULL;
  }
}

/* exhaust BYTES: at least half of so many can be had, again and again. */
static void run_exhaust(char **arguments) {
  size_t least = (size_t)strtoull(arguments[0] ? arguments[0] : "0", NULL, 10) / 2, count;
  struct rng rng = rng_from(seed, 3);
  for (int round = 0; round < 3; round++) {
    size_t bytes = fill_up(&rng, &count);
    CHECKF(bytes >= least, "only %zu MB in round %d", bytes >> 20, round);
    CHECK(!malloc(PTRDIFF_MAX - 4096) && errno == ENOMEM);
    empty_out(count, 20);
    sleep_ns(100000000); /* meshing with no memory left */
    empty_out(count, SIZE_MAX > UINT32_MAX ? UINT32_MAX : 1);
  }
  void *p = malloc(1000000);
  CHECK(p);
  free(p);
}

/* ---- sandboxes ----------------------------------------------------------------------------------------------------
 */

static const struct call_name {
  const char *name;
  int number;
} calls[] = {
    {"userfaultfd", SYS_userfaultfd}, {"memfd_create", SYS_memfd_create}, {"process_madvise", SYS_process_madvise},
    {"io_uring_setup", 425},          {"close_range", SYS_close_range},   {"mremap", SYS_mremap},
    {"membarrier", SYS_membarrier},   {"madvise", SYS_madvise},
};

#if defined(__x86_64__)
#define OUR_ARCHITECTURE AUDIT_ARCH_X86_64
#else
#define OUR_ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

/* For this thread, or for all. */
static void refuse(int number, int error, unsigned flags) {
  struct sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OUR_ARCHITECTURE, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog filter = {.len = sizeof program / sizeof *program, .filter = program};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter) != 0) skip("no seccomp filter can be set");
}

/* One of the calls, or "all" of those that the engine lives by. */
static void refuse_by_name(const char *name, int error, unsigned flags) {
  bool found = false;
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
    bool all = strcmp(name, "all") == 0 && calls[i].number != SYS_madvise;
    if (!all && strcmp(calls[i].name, name) != 0) continue;
    refuse(calls[i].number, error, flags);
    found = true;
  }
  if (!found) FAIL("no call %s", name);
}

/* seccomp NAME ERRNO CASE... */
static void run_seccomp(char **arguments) {
  CHECK(arguments[0] && arguments[1]);
  refuse_by_name(arguments[0], atoi(arguments[1]), 0);
  run_again(arguments + 2);
}

/* What an allocator may call in any program, and what this one's threads call besides: the end of the process. */
static void forbid_engine(bool for_exec) {
  static const uint32_t forbidden[] = {
      SYS_userfaultfd, SYS_memfd_create, SYS_process_madvise,   SYS_io_uring_setup,     SYS_io_uring_enter,
      SYS_close_range, SYS_ioctl,        SYS_pread64,           SYS_fallocate,          SYS_ftruncate,
      SYS_eventfd2,    SYS_pidfd_open,   SYS_sched_setaffinity, SYS_sched_setscheduler, SYS_getdents64};
  enum { CALLS = sizeof forbidden / sizeof *forbidden };
  struct sock_filter program[CALLS + 3];
  size_t n = 0;
  program[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  for (size_t i = 0; i < CALLS; i++) {
    uint32_t call = for_exec && forbidden[i] == SYS_pread64 ? SYS_userfaultfd : forbidden[i]; /* the linker's too */
    program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, (uint8_t)(CALLS - i), 0);
  }
  program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  program[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
  struct sock_fprog filter = {.len = (unsigned short)n, .filter = program};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) != 0)
    skip("no seccomp filter can be set for all threads");
}

/* killed CASE...: the same filter, inherited. */
static void run_killed(char **arguments) {
  forbid_engine(true);
  run_again(arguments);
}

/* late-seccomp NAME ERRNO: for all threads, while passes go on. */
static char **late_filter;

static void refuse_late(void) {
  rounds++;
  if (rounds == 200) refuse_by_name(late_filter[0], atoi(late_filter[1]), SECCOMP_FILTER_FLAG_TSYNC);
}

static void run_late_seccomp(char **arguments) {
  CHECK(arguments[0] && arguments[1]);
  late_filter = arguments;
  rounds_needed = 300;
  work(800, refuse_late);
}

static void forbid_once(void) {
  if (++rounds == 300) forbid_engine(false);
}

/* A filter for all threads, set while passes go on. */
static void run_filter(char **arguments) {
  (void)arguments;
  rounds_needed = 400;
  work(1500, forbid_once);
}

/* What setpriv does: the user changes, a thread's capabilities stay, and then it changes its group. */
static void change_user(void) {
  struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct caps[2];
  if (++rounds != 100) return;
  CHECK(syscall(SYS_capget, &head, caps) == 0 && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0);
  if (setresuid(65534, 65534, 65534) < 0) skip("the user cannot be changed");
  CHECK(capset(&head, caps) == 0);
  CHECK(setresgid(65534, 65534, 65534) == 0 && setgroups(0, NULL) == 0);
}

/* The program's one thread allocates, so that the change is that of the whole program. */
static void run_credentials(char **arguments) {
  (void)arguments;
  if (geteuid() != 0) skip("not root");
  struct rng rng = rng_from(seed, 100);
  build();
  for (uint64_t end = now_ns() + duration_ns(1000); now_ns() < end || rounds < 200; sleep_ns(1000000)) {
    for (int i = 0; i < 300; i++) change(&objects[rng_below(&rng, slots)], &rng);
    change_user();
  }
  verify_all();
  discard_all();
}

/* A process of one thread may have a user namespace of its own, as without the library. */
static void run_user_namespace(char **arguments) {
  (void)arguments;
  pid_t child = fork();
  if (child == 0) _exit(syscall(SYS_unshare, CLONE_NEWUSER) == 0 ? 0 : errno);
  int status;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
  if (status) errno = WEXITSTATUS(status), skip("no user namespace can be had");
  struct rng rng = rng_from(seed, 100);
  build();
  for (rounds = 0; rounds < 400; rounds++) {
    for (int i = 0; i < 300; i++) change(&objects[rng_below(&rng, slots)], &rng);
    if (rounds == 200) CHECK(unshare(CLONE_NEWUSER) == 0);
    sleep_ns(1000000);
  }
  verify_all();
  discard_all();
}

/* ---- threads and forks --------------------------------------------------------------------------------------------
 */

enum { GENERATION = 12, HANDED = 64 };
static void *handed[GENERATION][HANDED];

/* Frees what the thread before it left, leaves something for the next; ends with full vectors. */
static void *short_life(void *argument) {
  size_t me = (size_t)(uintptr_t)argument;
  struct rng rng = rng_from(seed, now_ns());
  for (size_t i = 0; i < HANDED; i++) {
    uint32_t size = sizes[rng_below(&rng, SMALL_SIZES)];
    free(__atomic_exchange_n(&handed[(me + 1) % GENERATION][i], NULL, __ATOMIC_ACQ_REL));
    unsigned char *p = malloc(size);
    if (!p) continue;
    pattern_fill(p, size, i);
    CHECK_PATTERN(p, size, i);
    free(__atomic_exchange_n(&handed[me][i], p, __ATOMIC_ACQ_REL));
  }
  return NULL;
}

static void generation(void) {
  pthread_t threads[GENERATION];
  size_t n = 0;
  while (n < GENERATION && pthread_create(&threads[n], NULL, short_life, (void *)(uintptr_t)n) == 0) n++;
  while (n) CHECK(pthread_join(threads[--n], NULL) == 0);
}

static void run_threads(char **arguments) {
  (void)arguments;
  work(1000, generation);
}

/* Ten thousand, each of which leaves something to be freed by another; their heaps serve the next. */
static size_t resident_kb(void) {
  char text[128] = "";
  FILE *f = fopen("/proc/self/statm", "re");
  if (!f || !fgets(text, sizeof text, f)) skip("no /proc/self/statm");
  fclose(f);
  char *second = strchr(text, ' ');
  return second ? strtoul(second, NULL, 10) * (size_t)sysconf(_SC_PAGESIZE) / 1024 : 0;
}

static void run_many_threads(char **arguments) {
  enum { GENERATIONS = 10000 / GENERATION, WARM = GENERATIONS / 10, MOST_GROWTH_KB = 4096 };
  (void)arguments;
  size_t before = 0, after;
  for (int i = 0; i < GENERATIONS; i++) {
    generation();
    if (i == WARM) before = resident_kb();
  }
  after = resident_kb();
  CHECKF(after < before + MOST_GROWTH_KB, "%zu kB after %d threads, %zu kB after %d", before, WARM * GENERATION, after,
         GENERATIONS * GENERATION);
}

/* The highest of priorities on the one processor that they share with the library's threads. */
static void become_urgent(void) {
  struct sched_param p = {.sched_priority = sched_get_priority_max(SCHED_FIFO)};
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(0, &one);
  if (sched_setaffinity(0, sizeof one, &one) < 0) skip("no affinity");
  if (sched_setscheduler(0, SCHED_FIFO, &p) < 0) skip("no real-time threads");
}

/* Threads that are made from now on inherit both. */
static void run_realtime(char **arguments) {
  (void)arguments;
  become_urgent();
  work(800, NULL);
}

static void in_fork_handler(void) {
  for (size_t i = 0; i < SIZES; i++) {
    unsigned char *p = malloc(sizes[i]);
    if (p) pattern_fill(p, sizes[i], i);
    free(p);
  }
}

/* The children see slots of the threads in the middle of a change, so they use no slot, but memory of their own, and
 * what nobody changes. */
enum { STILL = 3000 };
static struct patterned still[STILL];

static void fork_now(void) {
  enum { AT_ONCE = 3 };
  pid_t children[AT_ONCE];
  for (int k = 0; k < AT_ONCE; k++) {
    children[k] = fork();
    if (children[k]) continue;
    set_watchdog();
    struct rng rng = rng_from(seed, (uint64_t)getpid());
    for (size_t i = 0; i < STILL; i++) patterned_check(&still[i]);
    for (int i = 0; i < 3000; i++) change(&still[rng_below(&rng, STILL)], &rng);
    if (k == 0) sleep_ns(20000000); /* its own mesher may start */
    for (size_t i = 0; i < STILL; i++) patterned_discard(&still[i]);
    _exit(0);
  }
  for (int k = 0; k < AT_ONCE; k++) check_exit(children[k], "a child of the storm");
}

static void build_still(void);

static void run_forks(char **arguments) {
  (void)arguments;
  CHECK(pthread_atfork(in_fork_handler, in_fork_handler, in_fork_handler) == 0);
  build_still();
  work(1500, fork_now);
  for (size_t i = 0; i < STILL; i++) patterned_discard(&still[i]);
}

/* ---- nested forks, and children that outlive their parents; forks by several threads at once ----------------------
 */

static int report[2]; /* a pipe: one byte from each that found everything right */

/* Its descendants, each of which outlives the one before; the last of them reports. */
__attribute__((noreturn)) static void check_as_descendant(int depth) {
  for (;; depth--) {
    set_watchdog();
    for (size_t i = 0; i < STILL; i++) patterned_check(&still[i]);
    struct rng rng = rng_from(seed, (uint64_t)getpid());
    for (int i = 0; i < 2000; i++) change(&still[rng_below(&rng, STILL)], &rng);
    if (depth == 0) break;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child) _exit(0);
  }
  sleep_ns(100000000); /* passes of its own */
  for (size_t i = 0; i < STILL; i++) patterned_check(&still[i]);
  CHECK(write(report[1], "x", 1) == 1);
  _exit(0);
}

static void await_reports(int n) {
  char byte;
  for (int i = 0; i < n; i++) CHECK(read(report[0], &byte, 1) == 1);
}

static void fork_nested(void) {
  pid_t child = fork();
  if (child == 0) check_as_descendant(3);
  check_exit(child, "a child that has children");
  child = fork();
  if (child == 0) {
    CHECK(daemon(1, 1) == 0);
    check_as_descendant(0);
  }
  check_exit(child, "a child that becomes a daemon");
  await_reports(2);
}

static void build_still(void) {
  struct rng rng = rng_from(seed, 5);
  for (size_t i = 0; i < STILL; i++) {
    make(&still[i], &rng, SMALL_SIZES);
    for (int k = 0; k < 6; k++) free(malloc(sizes[rng_below(&rng, SMALL_SIZES)]));
  }
  CHECK(pipe2(report, O_CLOEXEC) == 0);
}

static void run_nested(char **arguments) {
  (void)arguments;
  build_still();
  work(600, fork_nested);
}

static void *fork_in_thread(void *unused) {
  (void)unused;
  pid_t child = fork();
  if (child == 0) check_as_descendant(0);
  check_exit(child, "a child of a thread");
  return NULL;
}

static void fork_in_threads(void) {
  enum { FORKERS = 3 };
  pthread_t threads[FORKERS];
  for (int i = 0; i < FORKERS; i++) CHECK(pthread_create(&threads[i], NULL, fork_in_thread, NULL) == 0);
  for (int i = 0; i < FORKERS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  await_reports(FORKERS);
}

static void run_forking_threads(char **arguments) {
  (void)arguments;
  build_still();
  work(800, fork_in_threads);
}

/* ---- stopped by others ------------------------------------------------------------------------------------------- */

static void run_stopped(char **arguments) {
  (void)arguments;
  pid_t parent = getpid(), child = fork();
  if (child == 0) {
    for (int i = 0; i < 60; i++) {
      CHECK(kill(parent, SIGSTOP) == 0);
      sleep_ns(3000000);
      CHECK(kill(parent, SIGCONT) == 0);
      sleep_ns(5000000);
    }
    _exit(0);
  }
  work(700, NULL);
  check_exit(child, "who stops us");
}

/* A profiler: stops every thread, the library's too, reads memory, lets them go on. Returns how many objects could not
 * be read, because their run was closed. */
static unsigned look_at(pid_t process) {
  enum { MOST = 64 };
  pid_t tasks[MOST];
  char path[64];
  unsigned n = 0, closed = 0;
  snprintf(path, sizeof path, "/proc/%d/task", process);
  DIR *d = opendir(path);
  CHECK(d);
  for (struct dirent *e; (e = readdir(d)) && n < MOST;)
    if (e->d_name[0] != '.' && ptrace(PTRACE_SEIZE, (pid_t)atoi(e->d_name), NULL, NULL) == 0)
      tasks[n++] = (pid_t)atoi(e->d_name);
  closedir(d);
  if (!n) skip("ptrace");
  for (unsigned i = 0; i < n; i++)
    if (ptrace(PTRACE_INTERRUPT, tasks[i], NULL, NULL) < 0 || waitpid(tasks[i], NULL, __WALL) < 0) tasks[i] = 0;
  unsigned char *copy = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(copy != MAP_FAILED);
  for (size_t i = 0; i < STILL; i += 3) {
    struct iovec here = {copy, still[i].size}, there = {still[i].p, still[i].size};
    ssize_t got = process_vm_readv(process, &here, 1, &there, 1, 0);
    CHECKF(got == (ssize_t)still[i].size || errno == EFAULT, "process_vm_readv");
    if (got != (ssize_t)still[i].size)
      closed++;
    else
      CHECK_PATTERN(copy, still[i].size, still[i].seed);
  }
  munmap(copy, 1 << 20);
  for (unsigned i = 0; i < n; i++)
    if (tasks[i]) ptrace(PTRACE_DETACH, tasks[i], NULL, NULL);
  return closed;
}

static void run_profiler(char **arguments) {
  (void)arguments;
  build_still();
  prctl(PR_SET_PTRACER, -1L, 0L, 0L, 0L);
  pid_t parent = getpid(), child = fork();
  if (child == 0) {
    set_watchdog();
    unsigned closed = 0;
    for (int i = 0; i < 100; i++) {
      closed += look_at(parent);
      sleep_ns(4000000);
    }
    CHECKF(closed < 100 * STILL / 30, "%u objects could not be read", closed);
    _exit(0);
  }
  work(900, NULL);
  int status;
  CHECK(waitpid(child, &status, 0) == child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == TEST_SKIPPED) _exit(TEST_SKIPPED);
  CHECKF(status == 0, "the profiler ended with status %#x", (unsigned)status);
}

/* ---- mappings: as many as there may be, of the program's own; they never merge with their neighbours --------------
 */

static void run_mappings(char **arguments) {
  (void)arguments;
  size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = 400000, made = 0;
  char *at = mmap(NULL, pages * page, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) skip("mmap");
  work(200, NULL);
  for (size_t i = 1; i < pages && mprotect(at + i * page, page, PROT_READ) == 0; i += 2) made++;
  if (made > pages / 2 - 2) skip("there is no end of mappings here");
  CHECK(errno == ENOMEM);
  work(500, NULL);
  CHECK(munmap(at, pages * page) == 0);
  work(200, NULL);
}

/* ---- memory that the program itself does something to -------------------------------------------------------------
 */

static void run_mlockall(char **arguments) {
  int flags = MCL_CURRENT | MCL_FUTURE;
  bool late = arguments[0] && strcmp(arguments[0], "late") == 0;
  if (late) work(200, NULL);
  if (mlockall(flags) < 0) {
    CHECK(errno == ENOMEM || errno == EPERM || errno == EAGAIN);
    skip("mlockall");
  }
  work(600, NULL);
  CHECK(munlockall() == 0);
  work(200, NULL);
}

/* Freed while locked: what takes its place reads as zeros all the same. */
static void run_mlock(char **arguments) {
  (void)arguments;
  enum { LOCKED = 16 };
  static unsigned char *p[LOCKED], *between[LOCKED];
  for (int round = 0; round < 3; round++) {
    size_t size = (size_t)65536 << round;
    for (int i = 0; i < LOCKED; i++) {
      p[i] = malloc(size);
      between[i] = malloc(size);
      CHECK(p[i] && between[i]);
      memset(p[i], 0xa5, size);
      if (mlock(p[i], size) < 0) skip("mlock");
    }
    for (int i = 0; i < LOCKED; i++) free(p[i]);
    sleep_ns(200000000); /* unused memory is given back meanwhile */
    for (int i = 0; i < LOCKED; i++) {
      p[i] = calloc(1, size);
      CHECK(p[i]);
      for (size_t k = 0; k < size; k++) CHECKF(p[i][k] == 0, "calloc(1, %zu), byte %zu", size, k);
    }
    for (int i = 0; i < LOCKED; i++) free(p[i]), free(between[i]);
  }
}

/* Small objects, sorted by address. Of every 64th page that is full of them all are kept: the program may do to such a
 * page what it likes, since nobody else has a slot there. Of the others few are. */
enum { SMALL = 60000, SMALL_BYTES = 64, MOST_OWN = SMALL / 64, OWN_ONE_IN = 64 };
static unsigned char *small[SMALL];
static bool small_kept[SMALL];
static void *own[MOST_OWN];
static size_t own_count, own_bytes;

static int by_address(const void *a, const void *b) {
  uintptr_t x = (uintptr_t)(*(unsigned char *const *)a), y = (uintptr_t)(*(unsigned char *const *)b);
  return x < y ? -1 : x > y;
}

static uint64_t seed_of(const unsigned char *p) {
  return (uintptr_t)p * 31;
}

static void find_own_pages(void) {
  size_t per = own_bytes / SMALL_BYTES, full = 0;
  for (size_t i = 0; i + per <= SMALL; i++) {
    if ((uintptr_t)small[i] % own_bytes || small[i + per - 1] != small[i] + own_bytes - SMALL_BYTES) continue;
    if (full++ % OWN_ONE_IN) continue;
    own[own_count++] = small[i];
    for (size_t k = i; k < i + per; k++) small_kept[k] = true;
  }
  CHECKF(own_count, "no page is full of our objects");
}

static void make_small(void) {
  own_bytes = (size_t)sysconf(_SC_PAGESIZE);
  for (size_t i = 0; i < SMALL; i++) {
    CHECK((small[i] = malloc(SMALL_BYTES)) != NULL);
    pattern_fill(small[i], SMALL_BYTES, seed_of(small[i]));
  }
  qsort(small, SMALL, sizeof *small, by_address);
  find_own_pages();
}

static void thin_out_small(void) {
  for (size_t i = 0; i < SMALL; i++) {
    small_kept[i] |= mix64(i) % 30 == 0;
    if (!small_kept[i]) free(small[i]);
  }
}

static void finish_small(void) {
  for (size_t i = 0; i < SMALL; i++) {
    if (!small_kept[i]) continue;
    CHECK_PATTERN(small[i], SMALL_BYTES, seed_of(small[i]));
    pattern_fill(small[i], SMALL_BYTES, seed_of(small[i]) + 1);
    CHECK_PATTERN(small[i], SMALL_BYTES, seed_of(small[i]) + 1);
    free(small[i]);
  }
}

static bool can_be_stored_into(void *page) {
  int status;
  pid_t child = fork();
  if (child == 0) {
    signal(SIGSEGV, SIG_DFL);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    *(volatile char *)page = 1;
    _exit(0);
  }
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  return WIFEXITED(status);
}

/* A page that the program has made read-only stays so, whoever its neighbours are. */
static void run_mprotect(char **arguments) {
  (void)arguments;
  make_small();
  for (size_t i = 0; i < own_count; i++) CHECK(mprotect(own[i], own_bytes, PROT_READ) == 0);
  thin_out_small();
  work(500, NULL);
  for (size_t i = 0; i < own_count; i++) {
    CHECKF(!can_be_stored_into(own[i]), "%p was made read-only and is not", own[i]);
    CHECK(mprotect(own[i], own_bytes, PROT_READ | PROT_WRITE) == 0);
  }
  finish_small();
}

/* Children do not touch these pages. */
static void run_dontfork(char **arguments) {
  (void)arguments;
  make_small();
  for (size_t i = 0; i < own_count; i++) CHECK(madvise(own[i], own_bytes, MADV_DONTFORK) == 0);
  thin_out_small();
  work(500, NULL);
  for (size_t i = 0; i < own_count; i++) CHECK(madvise(own[i], own_bytes, MADV_DOFORK) == 0);
  finish_small();
}

static bool is_own(const unsigned char *p) {
  for (size_t i = 0; i < own_count; i++)
    if ((size_t)(p - (unsigned char *)own[i]) < own_bytes) return true;
  return false;
}

/* The contents are the program's own loss; nothing else is. */
static void run_dontneed(char **arguments) {
  (void)arguments;
  make_small();
  for (size_t i = 0; i < own_count; i += 2) CHECK(madvise(own[i], own_bytes, MADV_DONTNEED) == 0);
  thin_out_small();
  work(300, NULL);
  for (size_t i = 1; i < own_count; i += 2) CHECK(madvise(own[i], own_bytes, MADV_DONTNEED) == 0);
  work(300, NULL);
  for (size_t i = 0; i < SMALL; i++)
    if (small_kept[i] && is_own(small[i])) pattern_fill(small[i], SMALL_BYTES, seed_of(small[i]));
  finish_small();
}

/* ---- claimed, but never touched until now: pages that appear while a pass looks at their run ----------------------
 */

enum { LATE = 4000, LATE_BYTES = 1024, LATE_KEPT = 16 };

static void appear(void) {
  static unsigned char *late[LATE];
  for (size_t i = 0; i < LATE; i++) CHECK((late[i] = malloc(LATE_BYTES)) != NULL);
  for (size_t i = 0; i < LATE; i++)
    if (i % LATE_KEPT) free(late[i]);
  for (size_t i = 0; i < LATE; i += LATE_KEPT) {
    pattern_fill(late[i], LATE_BYTES, i);
    sleep_ns(20000);
  }
  for (size_t i = 0; i < LATE; i += LATE_KEPT) {
    CHECK_PATTERN(late[i], LATE_BYTES, i);
    free(late[i]);
  }
}

static void run_late(char **arguments) {
  (void)arguments;
  for (uint64_t end = now_ns() + duration_ns(4000); now_ns() < end;) appear();
}

/* ---- which case ---------------------------------------------------------------------------------------------------
 */

static const struct hostile_case {
  const char *name;
  void (*run)(char **arguments);
} cases[] = {
    {"worker", run_worker},
    {"close-range", run_close_range},
    {"close-loop", run_close_loop},
    {"dup2", run_dup2},
    {"numbers", run_numbers},
    {"limit", run_limit},
    {"nofile", run_nofile},
    {"exhaust", run_exhaust},
    {"seccomp", run_seccomp},
    {"filter", run_filter},
    {"credentials", run_credentials},
    {"user-namespace", run_user_namespace},
    {"exec", run_exec},
    {"nothing-open", run_nothing_open},
    {"killed", run_killed},
    {"late-seccomp", run_late_seccomp},
    {"many-threads", run_many_threads},
    {"realtime", run_realtime},
    {"nested", run_nested},
    {"forking-threads", run_forking_threads},
    {"stopped", run_stopped},
    {"profiler", run_profiler},
    {"mappings", run_mappings},
    {"threads", run_threads},
    {"forks", run_forks},
    {"mlockall", run_mlockall},
    {"mlock", run_mlock},
    {"mprotect", run_mprotect},
    {"dontfork", run_dontfork},
    {"dontneed", run_dontneed},
    {"late", run_late},
};

int main(int argc, char **argv) {
  const char *text = getenv("MESH_UFFD_TEST_SEED");
  seed = text && *text ? strtoull(text, NULL, 0) : mix64(now_ns() ^ ((uint64_t)getpid() << 40));
  for (size_t i = 0; argc > 1 && i < sizeof cases / sizeof *cases; i++)
    if (strcmp(argv[1], cases[i].name) == 0) {
      set_watchdog();
      cases[i].run(argv + 2);
      return 0;
    }
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) dprintf(STDERR_FILENO, "%s\n", cases[i].name);
  return 2;
}
