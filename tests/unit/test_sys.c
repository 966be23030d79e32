/* SPDX-License-Identifier: Apache-2.0 */
#include "src/sys.h"
#include "uffd/compat.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(sys, .timeout = 30);

/* Kinds that nobody else calls meanwhile. */
static long ask_pid(void) {
  return mu_sys_call(MU_SYS_getpid, 0, 0, 0, 0, 0, 0);
}

/* ---- the hook ---- */

static uint64_t indexes[8], asked;
static int answer;

static int note_index(enum mu_sys call, uint64_t index) {
  if (call == MU_SYS_getpid && asked < 8) indexes[asked++] = index;
  return call == MU_SYS_getpid ? answer : 0;
}

Test(sys, without_a_hook_calls_are_made) {
  cr_assert_null(mu_sys_hook);
  cr_assert_eq(ask_pid(), getpid());
  cr_assert_not(mu_sys_refused(MU_SYS_getpid));
}

Test(sys, the_hook_sees_each_kind_counted_from_zero) {
  ask_pid(); /* not counted: there is no hook yet */
  mu_sys_hook = note_index;
  for (uint64_t i = 0; i < 5; i++) {
    i == 2 ? (void)mu_sys_refused(MU_SYS_getpid) : (void)ask_pid();
    mu_sys_call(MU_SYS_gettid, 0, 0, 0, 0, 0, 0);
  }
  cr_assert_eq(asked, 5);
  for (uint64_t i = 0; i < 5; i++) cr_assert_eq(indexes[i], i);
}

Test(sys, a_positive_answer_is_the_error) {
  mu_sys_hook = note_index;
  answer = ENOSPC;
  cr_assert_eq(ask_pid(), -ENOSPC);
  cr_assert_eq(mu_sys_refused(MU_SYS_getpid), ENOSPC);
  cr_assert_not(mu_sys_refused(MU_SYS_gettid));
  answer = 0;
  cr_assert_eq(ask_pid(), getpid());
  answer = -ENOSPC;
  cr_assert_eq(ask_pid(), getpid());
}

/* ---- MESH_UFFD_TEST_FAIL ---- */

/* Whether the n-th calls are refused, from 0 on: "x" refused, "-" not. */
static void expect(enum mu_sys call, const char *pattern) {
  for (const char *p = pattern; *p; p++)
    cr_assert_eq(mu_sys_refused(call) != 0, *p == 'x', "call %d of \"%s\"", (int)(p - pattern), pattern);
}

Test(sys, one_call_fails) {
  mu_sys_hook_from_text("getpid:2:28");
  cr_assert_eq(ask_pid(), getpid());
  cr_assert_eq(ask_pid(), getpid());
  cr_assert_eq(ask_pid(), -28);
  cr_assert_eq(ask_pid(), getpid());
  expect(MU_SYS_gettid, "------");
}

Test(sys, a_range_of_calls_fails) {
  mu_sys_hook_from_text("getpid:1-3:12");
  expect(MU_SYS_getpid, "-xxx---");
}

Test(sys, a_range_without_end_fails_for_ever) {
  mu_sys_hook_from_text("getpid:4-:12");
  expect(MU_SYS_getpid, "----xxxxxxxxxxxxxxxx");
}

Test(sys, several_rules) {
  mu_sys_hook_from_text("getpid:0:1,gettid:1-2:2,getpid:3-:3");
  expect(MU_SYS_gettid, "-xx-");
  cr_assert_eq(ask_pid(), -1);
  expect(MU_SYS_getpid, "--");
  cr_assert_eq(ask_pid(), -3);
}

Test(sys, the_first_rule_that_fits_decides) {
  mu_sys_hook_from_text("getpid:1:5,getpid:0-9:7");
  cr_assert_eq(ask_pid(), -7);
  cr_assert_eq(ask_pid(), -5);
  cr_assert_eq(ask_pid(), -7);
}

Test(sys, rules_may_come_in_several_texts) {
  mu_sys_hook_from_text("getpid:0:1");
  mu_sys_hook_from_text("gettid:0:1");
  expect(MU_SYS_getpid, "x-");
  expect(MU_SYS_gettid, "x-");
}

/* On no descriptor at all, so that it fails when it is made: by EBADF, or as an emulator sees fit. */
static int ask_ioctl(unsigned long request) {
  return mu_ioctl(-1, request, NULL);
}
static int is_made(unsigned long request) {
  return (int)mu_sys_raw(SYS_ioctl, -1, (long)request, 0, 0, 0, 0);
}

Test(sys, an_ioctl_fails_by_its_request) {
  mu_sys_hook_from_text("UFFDIO_MOVE:1-2:12,UFFDIO_WAKE:0:28,USERFAULTFD_IOC_NEW:0-:1");
  const int made = is_made(MU_UFFDIO_MOVE), moves[] = {made, -12, -12, made};
  for (int i = 0; i < 4; i++) {
    cr_assert_eq(ask_ioctl(MU_UFFDIO_MOVE), moves[i], "move %d", i);
    cr_assert_eq(ask_ioctl(UFFDIO_WAKE), i == 0 ? -28 : is_made(UFFDIO_WAKE), "wake %d", i);
    cr_assert_eq(ask_ioctl(UFFDIO_COPY), is_made(UFFDIO_COPY));
    cr_assert_eq(ask_ioctl(MU_USERFAULTFD_IOC_NEW), -1);
    cr_assert_eq(ask_ioctl(FIONREAD), is_made(FIONREAD), "one that has no name");
  }
}

Test(sys, an_ioctl_that_fails_as_such_does_not_count_as_its_request) {
  mu_sys_hook_from_text("ioctl:0-1:5,UFFDIO_MOVE:1:12");
  const int made = is_made(MU_UFFDIO_MOVE), results[] = {-5, -5, made, -12, made};
  for (int i = 0; i < 5; i++) cr_assert_eq(ask_ioctl(MU_UFFDIO_MOVE), results[i], "call %d", i);
}

Test(sys, every_call_has_a_name) {
  static const char *const names[] = {
#define X(name) #name,
      MU_SYS_LIST(X)
#undef X
#define X(name, number) #name,
          MU_SYS_REQUEST_LIST(X)
#undef X
  };
  cr_assert_eq(sizeof names / sizeof *names, MU_SYS_COUNT);
  for (int call = 0; call < MU_SYS_COUNT; call++) {
    char text[64];
    pid_t child = fork(); /* rules stay, so each kind needs a process */
    if (child == 0) {
      bool others = false;
      snprintf(text, sizeof text, "%s:0:1", names[call]);
      mu_sys_hook_from_text(text);
      for (int other = 0; mu_sys_hook && other < MU_SYS_COUNT; other++)
        others |= other != call && mu_sys_refused((enum mu_sys)other);
      _exit(others || !mu_sys_refused((enum mu_sys)call));
    }
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0, "%s", names[call]);
  }
}

Test(sys, bad_text_is_ignored) {
  static const char *const bad[] = {
      "",
      ",",
      ",,,",
      "getpid",
      "getpid:",
      "getpid:0",
      "getpid:0:",
      "getpid:0:x",
      "getpid:0:0",
      "getpid:0:-5",
      "getpid:x:5",
      "getpid:0-x:5",
      "nosuch:0:5",
      "getpi:0:5",
      "getpidd:0:5",
      "GETPID:0:5",
      ":0:5",
      "getpid:0:5x",
      "getpid:0:5:",
      "getpid 0:5",
      "getpid:0",
      "getpid:0-1",
      "getpid:0-1:",
      "getpid:0;5",
      "::",
      "getpid:,0:5",
      "getpid:0,5",
      "getpid-0:5",
      " getpid:0:5",
      "getpid :0:5",
      "getpid:0-:x",
      "getpid:1-:",
      "getpid:0,:5,:",
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    mu_sys_hook_from_text(bad[i]);
    cr_assert_null(mu_sys_hook, "\"%s\"", bad[i]);
  }
}

Test(sys, good_rules_among_bad_ones_count) {
  mu_sys_hook_from_text(",nonsense,getpid:0:x,getpid:1:9,,gettid:0,");
  expect(MU_SYS_getpid, "-x-");
  expect(MU_SYS_gettid, "---");
}

Test(sys, an_empty_range_never_fails) {
  mu_sys_hook_from_text("getpid:3-1:9");
  expect(MU_SYS_getpid, "------");
}

Test(sys, as_many_rules_as_there_is_room_for) {
  char text[1024] = "";
  for (int i = 0; i < 40; i++) snprintf(text + strlen(text), sizeof text - strlen(text), "getpid:%d:1,", 2 * i);
  mu_sys_hook_from_text(text);
  expect(MU_SYS_getpid, "x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-----------");
}

/* ---- calls ---- */

Test(sys, errors_come_as_results_and_errno_stays) {
  int err = 0;
  errno = 4711;
  cr_assert_eq(mu_open("/nonexistent/file", O_RDONLY), -ENOENT);
  cr_assert_eq(mu_close(-1), -EBADF);
  cr_assert_null(mu_mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &err));
  cr_assert_eq(err, EINVAL);
  cr_assert_eq(mu_madvise((void *)1, 4096, MADV_DONTNEED), -EINVAL);
  cr_assert_eq(mu_read(-1, &err, 1), -EBADF);
  cr_assert_eq(mu_write(-1, &err, 1), -EBADF);
  cr_assert_eq(mu_pread(-1, &err, 1, 0), -EBADF);
  cr_assert_eq(errno, 4711);
}

/* All six arguments arrive. */
Test(sys, a_file_is_mapped_at_its_offset) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  int err, fd = (int)mu_sys_call(MU_SYS_memfd_create, (long)"x", 0, 0, 0, 0, 0);
  cr_assert_geq(fd, 0);
  cr_assert_eq(pwrite(fd, "second", 6, (off_t)page), 6);
  char *p = mu_mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, (off_t)page, &err), back[6];
  cr_assert_eq(err, 0);
  cr_assert_arr_eq(p, "second", 6);
  cr_assert_eq(mu_pread(fd, back, 6, page), 6);
  cr_assert_arr_eq(back, "second", 6);
  cr_assert_eq(mu_mprotect(p, page, PROT_READ), 0);
  cr_assert_eq(mu_munmap(p, page), 0);
  cr_assert_eq(mu_munmap(p + 1, page), -EINVAL);
  cr_assert_eq(mu_close(fd), 0);
}

Test(sys, files_are_read_as_strings) {
  char buf[64], tiny[4];
  int fd;
  char path[] = "/tmp/mesh-uffd-test-XXXXXX";
  cr_assert_geq(fd = mkstemp(path), 0);
  cr_assert_eq(write(fd, "0123456789", 10), 10);
  cr_assert_eq(mu_read_file(path, buf, sizeof buf), 10);
  cr_assert_str_eq(buf, "0123456789");
  cr_assert_eq(mu_read_file(path, tiny, sizeof tiny), 3);
  cr_assert_str_eq(tiny, "012");
  cr_assert_eq(mu_read_file(path, tiny, 1), 0);
  cr_assert_str_eq(tiny, "");
  unlink(path);
  close(fd);
  cr_assert_eq(mu_read_file(path, buf, sizeof buf), -ENOENT);
  cr_assert_eq(mu_read_file("/tmp", buf, sizeof buf), -EISDIR);
}

Test(sys, a_forked_child_knows_its_number) {
  int status;
  pid_t child = fork();
  if (child == 0) _exit(mu_pid() != getpid());
  cr_assert_eq(waitpid(child, &status, 0), child);
  cr_assert_eq(status, 0);
  cr_assert_eq(mu_pid(), getpid());
}

Test(sys, clocks_go_forward) {
  uint64_t wall = mu_now_ns(), cpu = mu_thread_cpu_ns();
  while (mu_thread_cpu_ns() < cpu + 1000000) {
  }
  cr_assert_geq(mu_now_ns() - wall, 900000);
  cr_assert_lt(mu_now_ns() - wall, UINT64_C(30000000000));
}

Test(sys, a_futex_wait_ends_in_time_or_at_once) {
  _Atomic uint32_t word = 5;
  uint64_t began = mu_now_ns();
  mu_futex_wait(&word, 5, 3000000);
  cr_assert_geq(mu_now_ns() - began, 2900000);
  mu_futex_wait(&word, 6, -1); /* not what is expected: does not sleep */
  mu_futex_wake(&word, 1);
}
