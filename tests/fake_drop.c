/* SPDX-License-Identifier: Apache-2.0 */
/*
 * calloc's memory is zeros also where madvise says that it drops pages and does not, as some emulators do: here by a
 * seccomp filter that answers for the kernel.
 */
#include "test.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { OBJECTS = 400, MEDIUM = 8192, LARGE = 16 << 20 };

static bool pretend_to_drop(void) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_madvise, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MADV_DONTNEED, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void check_zeros(size_t size) {
  static unsigned char *object[OBJECTS];
  size_t n = size == LARGE ? 1 : OBJECTS;
  for (size_t i = 0; i < n; i++) {
    CHECK((object[i] = malloc(size)));
    memset(opaque(object[i]), 0x5a, size);
  }
  for (size_t i = 0; i < n; i++) free(object[i]);
  malloc_trim(0);
  for (size_t i = 0; i < n; i++) {
    CHECK((object[i] = calloc(1, size)));
    for (size_t k = 0; k < size; k++) CHECKF(object[i][k] == 0, "object %zu of %zu, byte %zu", i, size, k);
  }
  for (size_t i = 0; i < n; i++) free(object[i]);
}

int main(int argc, char **argv) {
  if (argc == 1) { /* again, with the filter from the start: the mesher does not stay where one is set */
    if (!pretend_to_drop()) {
      puts("skipped: seccomp filters are not to be had");
      return TEST_SKIPPED;
    }
    execl("/proc/self/exe", argv[0], "filtered", (char *)NULL);
    FAIL("execl");
  }
  test_begin();
  test_watchdog(60);
  for (int i = 0; i < 5; i++) {
    check_zeros(MEDIUM);
    check_zeros(LARGE);
  }
  puts("passed");
  return 0;
}
