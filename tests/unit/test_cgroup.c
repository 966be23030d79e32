/* SPDX-License-Identifier: Apache-2.0 */
#include "src/cgroup.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char groups[] = "/tmp/mesh-uffd-groups-XXXXXX", mounts[] = "/tmp/mesh-uffd-mounts-XXXXXX";
static struct mu_cgroup g;

static void begin(void) {
  int a = mkstemp(groups), b = mkstemp(mounts);
  cr_assert(a >= 0 && b >= 0);
  close(a);
  close(b);
}

static void end(void) {
  unlink(groups);
  unlink(mounts);
}

TestSuite(cgroup, .init = begin, .fini = end, .timeout = 30);

static void put(const char *path, const char *text) {
  FILE *f = fopen(path, "w");
  cr_assert(f);
  fputs(text, f);
  cr_assert_eq(fclose(f), 0);
}

static const char *find(const char *controller, const char *groups_text, const char *mounts_text) {
  put(groups, groups_text);
  put(mounts, mounts_text);
  memset(&g, 0, sizeof g);
  return mu_cgroup_find(&g, controller, groups, mounts) ? g.path : "none";
}

#define OTHERS  "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n23 22 0:21 / /proc rw - proc proc rw\n"
#define UNIFIED "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"

Test(cgroup, version_2_alone) {
  cr_assert_str_eq(find(NULL, "0::/user.slice/a.scope\n", OTHERS UNIFIED), "/sys/fs/cgroup/user.slice/a.scope");
  cr_assert(mu_cgroup_up(&g));
  cr_assert_str_eq(g.path, "/sys/fs/cgroup/user.slice");
  cr_assert(mu_cgroup_up(&g));
  cr_assert_str_eq(g.path, "/sys/fs/cgroup");
  cr_assert_not(mu_cgroup_up(&g));
}

Test(cgroup, a_namespace_of_its_own) {
  cr_assert_str_eq(find(NULL, "0::/\n", OTHERS UNIFIED), "/sys/fs/cgroup");
  cr_assert_not(mu_cgroup_up(&g));
}

Test(cgroup, a_container_in_the_namespace_of_the_host) {
  const char *mount = OTHERS "30 23 0:26 /docker/1234 /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";
  cr_assert_str_eq(find(NULL, "0::/docker/1234\n", mount), "/sys/fs/cgroup");
  cr_assert_str_eq(find(NULL, "0::/docker/1234/x/y\n", mount), "/sys/fs/cgroup/x/y");
  cr_assert_str_eq(find(NULL, "0::/docker/12345\n", mount), "/sys/fs/cgroup", "it is not below what is mounted");
}

Test(cgroup, mounted_outside_of_the_namespace) {
  cr_assert_str_eq(find(NULL, "0::/\n", OTHERS "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup rw\n"),
                   "/sys/fs/cgroup");
}

Test(cgroup, both_versions_at_once) {
  const char *in = "9:name=systemd:/init\n4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/d\n";
  const char *mount = OTHERS "40 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
                             "41 30 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
                             "42 30 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
  cr_assert_str_eq(find("memory", in, mount), "/sys/fs/cgroup/memory/a/b");
  cr_assert_str_eq(find("cpuacct", in, mount), "/sys/fs/cgroup/cpu,cpuacct/c");
  cr_assert_str_eq(find(NULL, in, mount), "/sys/fs/cgroup/unified/d");
  cr_assert_str_eq(find("mem", in, mount), "none");
  cr_assert_str_eq(find("io", in, mount), "none");
}

Test(cgroup, blanks_in_paths_are_read) {
  cr_assert_str_eq(find(NULL, "0::/a\n", OTHERS "30 23 0:26 / /mnt/c\\040g rw - cgroup2 cgroup2 rw\n"), "/mnt/c g/a");
}

Test(cgroup, nothing_there_and_nonsense) {
  cr_assert_str_eq(find(NULL, "0::/a\n", OTHERS), "none");
  cr_assert_str_eq(find(NULL, "", OTHERS UNIFIED), "none");
  cr_assert_str_eq(find(NULL, "0::\n0:\n:\nx\n0::a\n", OTHERS UNIFIED), "none");
  cr_assert_str_eq(find(NULL, "0::/a\n", "\n - \n1 2 3 - cgroup2\n30 - cgroup2 cgroup2 rw\n"), "none");
  cr_assert_str_eq(find("memory", "0::/a\n4:memory:/b\n", OTHERS UNIFIED), "none");
  unlink(groups);
  cr_assert_not(mu_cgroup_find(&g, NULL, groups, mounts));
}

Test(cgroup, lines_longer_than_any_buffer_are_passed_over) {
  static char text[100000];
  memset(text, 'x', sizeof text);
  strcpy(text + 30000, "\n");
  strcpy(text + 30001, UNIFIED);
  cr_assert_str_eq(find(NULL, "0::/a\n", text), "/sys/fs/cgroup/a");
  memset(text, 'y', sizeof text);
  memcpy(text, "0::/", 4);
  strcpy(text + 3000, "\n");
  cr_assert_str_eq(find(NULL, text, UNIFIED), "none", "a path that has no room");
}

Test(cgroup, files_are_opened) {
  find(NULL, "0::/\n", OTHERS "30 23 0:26 / /proc/self rw - cgroup2 cgroup2 rw\n");
  int fd = mu_cgroup_open(&g, "statm", O_RDONLY);
  cr_assert_geq(fd, 0);
  close(fd);
  cr_assert_lt(mu_cgroup_open(&g, "memory.max", O_RDONLY), 0);
}
