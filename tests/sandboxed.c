/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A filter for all threads, set by a system call instruction of the program's own, at any moment of passes: from then
 * on no ioctl is allowed, or neither ioctl nor reading /proc. Threads that touch closed memory at that moment must go
 * on, and every object must be as it was.
 */
#include "test.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { RUNS = 24, LONG_RUNS = 400, OBJECTS = 40000, KEEP_ONE_IN = 8, THREADS = 2, TIMES_AFTER = 3 };

static struct {
  unsigned char *p;
  size_t size;
} object[OBJECTS];
static _Atomic bool filtered;

static long call(long n, long a, long b, long c) {
#if defined(__x86_64__)
  long r;
  __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return r;
#else
  return syscall(n, a, b, c);
#endif
}

static void set_filter(bool no_pread) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, no_pread ? SYS_pread64 : SYS_ioctl, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog filter = {.len = sizeof code / sizeof *code, .filter = code};
  call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0);
  long r = call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, (long)&filter);
  CHECKF(r == 0, "seccomp: %ld", r);
}

static void check(size_t i) {
  if (object[i].p) CHECK_PATTERN(object[i].p, object[i].size, i);
}

static void *touch_all_the_time(void *number) {
  size_t me = (size_t)(uintptr_t)number;
  for (int times = 0; times < TIMES_AFTER; times += filtered)
    for (size_t i = me; i < OBJECTS; i += THREADS) {
      check(i);
      if (object[i].p && i % 7 == 0) *(volatile unsigned char *)object[i].p = *object[i].p;
    }
  return NULL;
}

static void run_once(uint64_t seed, int run) {
  pthread_t threads[THREADS];
  struct rng rng = rng_from(seed, (uint64_t)run);
  alarm(60);
  for (size_t i = 0; i < OBJECTS; i++) {
    object[i].size = 32u << rng_below(&rng, 5);
    CHECK((object[i].p = malloc(object[i].size)));
    pattern_fill(object[i].p, object[i].size, i);
  }
  for (size_t i = 0; i < OBJECTS; i++)
    if (rng_below(&rng, KEEP_ONE_IN)) {
      free(object[i].p);
      object[i].p = NULL;
    }
  for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, touch_all_the_time, (void *)i) == 0);
  sleep_ns(2000000 + rng_below(&rng, 40000000));
  set_filter(run % 2);
  filtered = true;
  for (size_t i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  for (size_t i = 0; i < OBJECTS; i++) check(i);
  for (size_t i = 0; i < OBJECTS; i++) free(object[i].p);
  _exit(0);
}

int main(int argc, char **argv) {
  if (argc == 1) { /* again, with a mesher that works all the time */
    CHECK(setenv("MESH_UFFD_TEST_EAGER", "1", 1) == 0);
    execl("/proc/self/exe", argv[0], "eager", (char *)NULL);
    FAIL("execl");
  }
  uint64_t seed = test_begin();
  test_watchdog(test_is_long() ? 900 : 120);
  for (int run = 0; run < (test_is_long() ? LONG_RUNS : RUNS); run++) {
    int status;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) run_once(seed, run);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECKF(status == 0, "run %d: status %x", run, (unsigned)status);
  }
  puts("passed");
  return 0;
}
