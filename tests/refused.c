/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each of the library's system calls fails, at each place of a program's life, with each errno that it can return: the
 * worker of tests/hostile runs on the library, one call of it fails, and it must end well and silently: no byte of its
 * data is wrong, or malloc has said NULL with ENOMEM. How often a run makes each call is asked of the library first
 * (MALLOCSTATS=2 says so where calls are made to fail).
 *
 * refused [PART PARTS]: a sample of SAMPLE, drawn from the seed; with MESH_UFFD_TEST_LONG=1 all of it, of which there
 * is PART of PARTS if they are named (PART from 0). Calls that a run makes more often than EACH times fail at each of
 * the first EACH and then at every so many. Prints what failed as the environment variables that make it fail again.
 */
#include "test.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { SAMPLE = 220, EACH = 150, STEP_SHARE = 16, MANY = 64, AT_ONCE = 10, SECONDS = 60, COUNTING_RUNS = 4, TIERS = 4 };

/* ---- what each call can return ---- */

#define E(...)                                                                                                         \
  (const int[]) {                                                                                                      \
    __VA_ARGS__, 0                                                                                                     \
  }

/* By the kernel's source, arguments being right, and EPERM and ENOSYS by a sandbox. */
static const struct call {
  const char *name;
  const int *errors;
} calls[] = {
    {"mmap", E(ENOMEM, EAGAIN, EPERM, EACCES, ENODEV, EINVAL)},
    {"munmap", E(ENOMEM, EPERM, EINVAL, EINTR)},
    {"mprotect", E(ENOMEM, EACCES, EPERM, EINVAL, EINTR)},
    {"madvise", E(ENOMEM, EAGAIN, EINVAL, EPERM, EIO, EFAULT, EINTR, EHWPOISON)},
    {"mremap", E(ENOMEM, EAGAIN, EFAULT, EINVAL, EPERM, EINTR)},
    {"futex", E(EAGAIN, EINTR, ETIMEDOUT, EINVAL, ENOMEM, ENOSYS)},
    {"openat", E(EMFILE, ENFILE, ENOENT, EACCES, EPERM, ENOMEM, ENXIO, ENODEV, EINTR, ELOOP)},
    {"close", E(EBADF, EINTR, EIO)},
    {"read", E(EINTR, EIO, EAGAIN, EINVAL, ESRCH, ENOMEM)},
    {"write", E(EINTR, EIO, EAGAIN, ENOSPC, EPIPE, EBUSY, EINVAL, EPERM)},
    {"pread64", E(EINTR, EIO, EAGAIN, EINVAL, ENOMEM, EOPNOTSUPP, ENODEV)},
    {"ioctl", E(EPERM, ENOSYS, ENOTTY, ENOMEM, EINTR)},
    {"memfd_create", E(EMFILE, ENFILE, ENOMEM, EINVAL, EPERM, EACCES, ENOSYS)},
    {"ftruncate", E(EPERM, EINVAL, EINTR, EIO, ENOMEM, EFBIG)},
    {"fallocate", E(ENOSPC, ENOMEM, EINTR, EOPNOTSUPP, EPERM, EFBIG, EIO)},
    {"fcntl", E(EPERM, EBUSY, EINVAL, EAGAIN, EMFILE)},
    {"close_range", E(ENOMEM, EMFILE, EINVAL, ENOSYS, EPERM)},
    {"process_madvise", E(ENOMEM, EPERM, ESRCH, EINVAL, EINTR, EAGAIN, ENOSYS, EFAULT)},
    {"userfaultfd", E(EPERM, ENOMEM, EINVAL, EMFILE, ENFILE, ENOSYS)},
    {"ppoll", E(EINTR, ENOMEM, EINVAL)},
    {"getrandom", E(EAGAIN, EINTR, ENOSYS)},
    {"sched_yield", E(ENOSYS, EPERM)},
    {"gettid", E(ENOSYS, EPERM)},
    {"prlimit64", E(EPERM, EINVAL, ESRCH, ENOSYS)},
    {"pidfd_open", E(EMFILE, ENFILE, ENOMEM, EINVAL, ESRCH, ENODEV, ENOSYS, EPERM)},
    {"eventfd2", E(EMFILE, ENFILE, ENOMEM, ENODEV, EINVAL, ENOSYS)},
    {"io_uring_setup", E(ENOMEM, EPERM, EINVAL, EMFILE, ENFILE, ENOSYS)},
    {"io_uring_enter", E(EAGAIN, EBUSY, EINTR, ENOMEM, EINVAL, ENXIO, EBADFD, EBADF, EPERM)},
    {"sched_setscheduler", E(EPERM, EINVAL, ESRCH)},
    {"sched_getattr", E(EINVAL, ESRCH, E2BIG, ENOSYS)},
    {"sched_setattr", E(EPERM, EINVAL, EBUSY, ESRCH, E2BIG, ENOSYS)},
    {"sched_setaffinity", E(EPERM, EINVAL, ENOMEM, ESRCH)},
    {"rt_sigprocmask", E(EINVAL, EPERM)},
    {"uname", E(EFAULT, EPERM)},
    {"getdents64", E(ENOENT, EINVAL, EINTR, ENOMEM)},
    {"prctl", E(EINVAL, EPERM, EACCES, ENOSYS)},
    {"getpid", E(EPERM)},
    {"clone3", E(EAGAIN, ENOMEM, EPERM, EINVAL, ENOSYS)},
    {"capget", E(EPERM, ESRCH, EINVAL)},
    {"capset", E(EPERM, ESRCH, EINVAL)},
    {"readlinkat", E(ENOENT, EACCES, ENOMEM, EINVAL)},
    {"pidfd_getfd", E(EPERM, EMFILE, EBADF, ESRCH, ENOSYS)},
    {"move_pages", E(EPERM, ENOMEM, EACCES, ESRCH, ENOSYS)},
    {"mbind", E(EPERM, ENOMEM, EIO, EINVAL, ENOSYS)},
    {"sigaltstack", E(EPERM, EFAULT, ENOSYS)},
    {"USERFAULTFD_IOC_NEW", E(EMFILE, ENFILE, ENOMEM, EPERM, EINVAL, ENOTTY)},
    {"UFFDIO_API", E(EINVAL, EPERM, EFAULT)},
    {"UFFDIO_REGISTER", E(ENOMEM, EBUSY, EINVAL, EPERM)},
    {"UFFDIO_UNREGISTER", E(ENOMEM, EINVAL)},
    {"UFFDIO_MOVE", E(EAGAIN, EBUSY, EEXIST, EFAULT, ENOMEM, EINVAL, ENOENT, ESRCH)},
    {"UFFDIO_COPY", E(EAGAIN, EEXIST, EFAULT, ENOMEM, EINVAL, ENOENT, ESRCH)},
    {"UFFDIO_ZEROPAGE", E(EAGAIN, EEXIST, ENOMEM, EINVAL, ENOENT, ESRCH)},
    {"UFFDIO_WRITEPROTECT", E(EAGAIN, ENOENT, ENOMEM, EINVAL, EFAULT, ESRCH)},
    {"UFFDIO_WAKE", E(EINVAL)},
};
enum { CALLS = sizeof calls / sizeof *calls };

/* ---- one run ---- */

static char worker[512];
static uint64_t seed;

struct failure {
  unsigned tier, call, length; /* so many times in a row */
  int error;
  size_t index;
};

static pid_t launch(unsigned tier, const char *fail, const char *stats, int output) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child) return child;
  char text[32];
  snprintf(text, sizeof text, "%u", tier);
  setenv("MESH_UFFD_TEST_TIER", text, 1);
  setenv("MESH_UFFD_TEST_EAGER", "1", 1);
  setenv("MESH_UFFD_TEST_FAIL", fail, 1);
  unsetenv("MESH_UFFD_TEST_LONG");
  if (stats)
    setenv("MALLOCSTATS", stats, 1);
  else
    unsetenv("MALLOCSTATS");
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  alarm(SECONDS * test_slow());
  execl(worker, worker, "worker", "40", "8000", (char *)NULL);
  _exit(99);
}

/* ---- how often a run makes each call ---- */

static size_t made[TIERS + 1][CALLS];

static void count_in(unsigned tier, const char *text) {
  for (unsigned c = 0; c < CALLS; c++) {
    char word[64];
    snprintf(word, sizeof word, "\ncall %s: ", calls[c].name);
    const char *at = strstr(text, word);
    size_t n = at ? strtoul(at + strlen(word), NULL, 10) : 0;
    if (n > made[tier][c]) made[tier][c] = n;
  }
}

/* Every name that the library says is in the table above. */
static void check_names(const char *text) {
  for (const char *at = text; (at = strstr(at, "\ncall ")); at++) {
    char name[64];
    bool known = false;
    CHECK(sscanf(at, "\ncall %63[^:]", name) == 1);
    for (unsigned c = 0; c < CALLS; c++) known |= !strcmp(calls[c].name, name);
    CHECKF(known, "what %s can return is not in the table", name);
  }
}

static void count_calls(unsigned tier) {
  static char text[1 << 14];
  for (int i = 0; i < COUNTING_RUNS; i++) {
    int status, fd = memfd_create("output", MFD_CLOEXEC);
    CHECK(fd >= 0);
    pid_t child = launch(tier, "getpid:1000000000:1", "2", fd);
    CHECK(waitpid(child, &status, 0) == child);
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    CHECKF(status == 0, "without a failure the worker ends with %#x: %s", (unsigned)status, text);
    check_names(text);
    count_in(tier, text);
  }
}

/* ---- many runs ---- */

static struct running {
  pid_t pid;
  int output;
  struct failure f;
} running[AT_ONCE];
static size_t done, bad;

static void describe(char *text, size_t room, const struct failure *f) {
  snprintf(text, room, "%s:%zu-%zu:%d", calls[f->call].name, f->index, f->index + f->length - 1, f->error);
}

static void judge(struct running *r, int status) {
  char text[512], fail[128];
  ssize_t n = pread(r->output, text, sizeof text - 1, 0);
  text[n > 0 ? n : 0] = 0;
  close(r->output);
  r->pid = 0;
  done++;
  if (status == 0 && n == 0) return;
  bad++;
  describe(fail, sizeof fail, &r->f);
  printf("MESH_UFFD_TEST_TIER=%u MESH_UFFD_TEST_FAIL=%s: %s %d: %s\n", r->f.tier, fail,
         WIFSIGNALED(status) ? "signal" : "status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), text);
}

static void wait_for_one(void) {
  int status;
  pid_t pid = waitpid(-1, &status, 0);
  CHECK(pid > 0);
  for (int i = 0; i < AT_ONCE; i++)
    if (running[i].pid == pid) judge(&running[i], status);
}

static void try(const struct failure *f) {
  struct running *r = NULL;
  char fail[128];
  while (!r) {
    for (int i = 0; i < AT_ONCE && !r; i++)
      if (!running[i].pid) r = &running[i];
    if (!r) wait_for_one();
  }
  describe(fail, sizeof fail, f);
  r->f = *f;
  r->output = memfd_create("output", MFD_CLOEXEC);
  CHECK(r->output >= 0);
  r->pid = launch(f->tier, fail, NULL, r->output);
}

static void wait_for_all(void) {
  for (int i = 0; i < AT_ONCE; i++)
    while (running[i].pid) wait_for_one();
}

/* ---- which ---- */

/* Runs differ: some more than was counted. */
static size_t indices(unsigned tier, unsigned call) {
  size_t n = made[tier][call];
  return n ? n + n / 8 + 2 : 0;
}

static unsigned count_errors(unsigned call) {
  unsigned n = 0;
  while (calls[call].errors[n]) n++;
  return n;
}

static void sweep(unsigned tier, unsigned part, unsigned parts) {
  size_t number = 0;
  for (unsigned c = 0; c < CALLS; c++)
    for (size_t i = 0; i < indices(tier, c); i += i < EACH ? 1 : i / STEP_SHARE)
      for (const int *error = calls[c].errors; *error; error++, number++)
        if (number % parts == part) {
          struct failure f = {tier, c, number % 7 ? 1 : 4, *error, i};
          if (!strcmp(calls[c].name, "UFFDIO_WAKE")) f.length = 1;
          try(&f);
        }
}

/* Each call as likely as another, low indices likelier. */
static void sample(void) {
  struct rng rng = rng_from(seed, 7);
  for (int i = 0; i < SAMPLE; i++) {
    struct failure f = {.tier = 1 + (unsigned)rng_below(&rng, TIERS), .length = 1};
    do f.call = (unsigned)rng_below(&rng, CALLS);
    while (!made[f.tier][f.call]);
    size_t most = indices(f.tier, f.call), below = rng_below(&rng, 2) && most > MANY ? MANY : most;
    f.index = rng_below(&rng, below);
    f.error = calls[f.call].errors[rng_below(&rng, count_errors(f.call))];
    try(&f);
  }
}

int main(int argc, char **argv) {
  seed = test_begin();
  struct mesh_api api = mesh_api_find();
  test_needs_library(&api);
  const char *slash = strrchr(argv[0], '/');
  snprintf(worker, sizeof worker, "%.*shostile", slash ? (int)(slash + 1 - argv[0]) : 0, argv[0]);
  CHECKF(access(worker, X_OK) == 0, "there is no %s", worker);
  unsigned part = argc > 2 ? (unsigned)strtoul(argv[1], NULL, 10) : 0;
  unsigned parts = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 1;
  CHECK(part < parts);
  size_t all = 0;
  for (unsigned tier = 1; tier <= TIERS; tier++) {
    count_calls(tier);
    for (unsigned c = 0; c < CALLS; c++) all += made[tier][c];
  }
  printf("%zu calls in a run of each tier\n", all);
  CHECKF(all > 100, "the library does not say what calls it makes");
  if (!test_is_long())
    sample();
  else
    for (unsigned tier = 1; tier <= TIERS; tier++) {
      sweep(tier, part, parts);
      wait_for_all();
      printf("tier %u: %zu runs, %zu wrong\n", tier, done, bad);
    }
  wait_for_all();
  printf("%zu runs, %zu wrong\n", done, bad);
  return bad ? 1 : 0;
}
