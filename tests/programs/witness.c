/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded beside the library: as a process ends it appends a line to the file that WITNESS_FILE names, with what the
 * library says of itself: "tier passes meshes faults program". So a test knows that memory was really meshed under the
 * program that it is about.
 */
#include "../../include/mesh-uffd.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static char name[4096], program[4096];
static struct mesh_uffd_stats inherited; /* by a forked child */

static void be_born(void) {
  inherited.size = sizeof inherited;
  mesh_uffd_get_stats(&inherited);
}

/* Some programs write over their environment and their arguments. */
__attribute__((constructor)) static void swear_in(void) {
  const char *text = getenv("WITNESS_FILE");
  if (text) snprintf(name, sizeof name, "%s", text);
  ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
  program[n < 0 ? 0 : n] = 0;
  pthread_atfork(NULL, NULL, be_born);
}

__attribute__((destructor)) static void testify(void) {
  struct mesh_uffd_stats s = {.size = sizeof s};
  char line[256];
  const char *slash = strrchr(program, '/');
  if (!*name || mesh_uffd_get_stats(&s)) return;
  int n = snprintf(line, sizeof line, "%u %llu %llu %llu %.100s\n", s.tier,
                   (unsigned long long)(s.passes - inherited.passes), (unsigned long long)(s.meshes - inherited.meshes),
                   (unsigned long long)(s.faults - inherited.faults), slash ? slash + 1 : "?");
  int fd = open(name, O_WRONLY | O_APPEND | O_CLOEXEC);
  if (fd < 0) return;
  ssize_t written = write(fd, line, (size_t)n);
  (void)written;
  close(fd);
}

/* Children of a fork often end so, without destructors. */
__attribute__((noreturn)) void _exit(int status) {
  testify();
  for (;;) syscall(SYS_exit_group, status);
}

__attribute__((noreturn)) void _Exit(int status) {
  _exit(status);
}
