/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/doctor.h"
#include "cmd/program.h"
#include "cmd/target.h"
#include "src/sys.h"
#include "uffd/compat.h"
#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

/* Whom it is about. */
struct patient {
  int pid; /* 0: whoever runs this command */
  uint64_t uid, gid, caps, seccomp, pinned, locked, threads;
  char groups[1024];
  struct target target;
  enum found found; /* the library in it */
};

enum verdict { FINE, NOTE, LACK };
static unsigned lacks;

/* ---- output --------------------------------------------------------------------------------------------------------
 */

__attribute__((format(printf, 3, 4))) static void check(enum verdict verdict, const char *name, const char *format,
                                                        ...) {
  static const char *const words[] = {"ok", "note", "LACK"};
  va_list args;
  va_start(args, format);
  printf("  %-5s %-17s ", words[verdict], name);
  vprintf(format, args);
  printf("\n");
  va_end(args);
  lacks += verdict == LACK;
}

static void mend(const char *line) {
  printf("        do:   %s\n", line);
}
static void cost(const char *line) {
  printf("        cost: %s\n", line);
}

static const char *error_text(int error) {
  return error == KILLED ? "a sandbox kills who asks" : error ? strerror(error) : "allowed";
}

/* ---- what is known of the patient ----------------------------------------------------------------------------------
 */

static bool read_status(struct patient *p) {
  char path[64], uids[128] = "";
  if (p->pid)
    snprintf(path, sizeof path, "/proc/%d/status", p->pid);
  else
    snprintf(path, sizeof path, "/proc/self/status");
  char *text = read_file(path, NULL);
  if (!text) return false;
  if (find_line(text, "Uid:", uids, sizeof uids)) sscanf(uids, "%*u %lu", &p->uid);
  if (find_line(text, "Gid:", uids, sizeof uids)) sscanf(uids, "%*u %lu", &p->gid);
  find_line(text, "Groups:", p->groups, sizeof p->groups);
  find_number(text, "CapEff:", 16, &p->caps);
  find_number(text, "Seccomp:", 10, &p->seccomp);
  find_number(text, "VmPin:", 10, &p->pinned);
  find_number(text, "VmLck:", 10, &p->locked);
  find_number(text, "Threads:", 10, &p->threads);
  free(text);
  return true;
}

static const char *user_name(uint64_t uid) {
  static char number[32];
  struct passwd *who = getpwuid((uid_t)uid);
  snprintf(number, sizeof number, "%" PRIu64, uid);
  return who ? who->pw_name : number;
}

static bool in_group(const struct patient *p, gid_t group) {
  const char *at = p->groups;
  if (p->gid == group) return true;
  for (char *end; *at; at = end) {
    uint64_t g = strtoull(at, &end, 10);
    if (end == at) break;
    if (g == group) return true;
  }
  return false;
}

/* ---- kernel --------------------------------------------------------------------------------------------------------
 */

struct version {
  int major, minor, patch;
};

static struct version kernel_version(char release[65]) {
  struct utsname u;
  struct version v = {0, 0, 0};
  if (uname(&u) == 0) sscanf(u.release, "%d.%d.%d", &v.major, &v.minor, &v.patch);
  snprintf(release, 65, "%s", u.release);
  return v;
}

static bool at_least(struct version v, int major, int minor) {
  return v.major > major || (v.major == major && v.minor >= minor);
}

/* As in uffd/tier.c. */
static bool move_is_sound(struct version v) {
  return at_least(v, 6, 17) || (v.major == 6 && v.minor == 12 && v.patch >= 43);
}

static unsigned best_tier(const struct probe *k, struct version v) {
  bool full = k->device == 0 || k->full == 0;
  if (k->close_range || k->pagemap) return MESH_UFFD_TIER_NONE;
  if (full && (k->features & UFFD_FEATURE_PAGEFAULT_FLAG_WP)) {
    if ((k->features & MU_UFFD_FEATURE_MOVE) && move_is_sound(v)) return MESH_UFFD_TIER_FULL;
    if (at_least(v, 5, 12)) return MESH_UFFD_TIER_FULL_WP;
  }
  return k->user == 0 ? MESH_UFFD_TIER_USER : MESH_UFFD_TIER_NONE;
}

static const char *what_tier_means(unsigned tier, bool meshes) {
  switch (tier) {
  case MESH_UFFD_TIER_FULL:
    return "meshes while all threads run";
  case MESH_UFFD_TIER_FULL_WP:
    return "meshes while all threads run; not while memory is pinned or locked";
  case MESH_UFFD_TIER_UNKNOWN:
    return "not looked for yet: there was nothing to mesh";
  default:
    return meshes ? "meshes only while the program has one thread" : "never meshes; empty pages still go back";
  }
}

static void check_kernel(struct version v, const char *release) {
  if (move_is_sound(v))
    check(FINE, "kernel", "Linux %s: UFFDIO_MOVE is sound", release);
  else if (at_least(v, 5, 12)) {
    check(LACK, "kernel", "Linux %s: no sound UFFDIO_MOVE, so tier 2 at best", release);
    mend("upgrade to Linux 6.12.43 or later in the 6.12 series, or to 6.17 or later");
  } else {
    check(LACK, "kernel", "Linux %s: no sound write-protection, so tier 3 at best", release);
    mend("upgrade to Linux 5.12 or later, better 6.17");
  }
}

/* ---- userfaultfd ---------------------------------------------------------------------------------------------------
 */

static const char COST_FULL[] =
    "whoever may use it can make the kernel wait in the midst of a copy from or to user "
    "memory, which makes races in the kernel easier to exploit; it gives no right by itself";

static void mend_access(const struct patient *p) {
  char line[512];
  mend("groupadd --system --force userfaultfd");
  mend("echo 'KERNEL==\"userfaultfd\", GROUP=\"userfaultfd\", MODE=\"0660\"' >/etc/udev/rules.d/60-userfaultfd.rules");
  mend("udevadm control --reload && udevadm trigger --name-match=userfaultfd");
  snprintf(line, sizeof line, "usermod --append --groups userfaultfd %s", user_name(p->uid));
  mend(line);
  cost(COST_FULL);
  printf("        or, for a service of systemd (systemctl edit NAME):\n");
  mend("[Service]");
  mend("SupplementaryGroups=userfaultfd");
  mend("DeviceAllow=/dev/userfaultfd rw");
  printf("        or, for a container, with a device file that its user may open:\n");
  mend("docker run --device /dev/userfaultfd --group-add \"$(stat -c %g /dev/userfaultfd)\" ...");
}

/* Its mode allows it, the control group's list of devices does not. */
static void mend_device_group(void) {
  printf("        The control group does not allow this device. For a service of systemd (systemctl edit NAME):\n");
  mend("[Service]");
  mend("DeviceAllow=/dev/userfaultfd rw");
  printf("        For a container:\n");
  mend("docker run --device /dev/userfaultfd ...");
  cost(COST_FULL);
}

static const char *device_path(const struct patient *p) {
  static char path[64];
  if (!p->pid) return "/dev/userfaultfd";
  snprintf(path, sizeof path, "/proc/%d/root/dev/userfaultfd", p->pid);
  return path;
}

/* What the file's mode says, for a process that cannot be made to try. */
static bool device_allows(const struct patient *p, const struct stat *s) {
  unsigned rw = 6;
  if (p->caps >> 1 & 1) return true; /* CAP_DAC_OVERRIDE */
  if (p->uid == s->st_uid) return (s->st_mode >> 6 & rw) == rw;
  if (in_group(p, s->st_gid)) return (s->st_mode >> 3 & rw) == rw;
  return (s->st_mode & rw) == rw;
}

static bool check_device(const struct patient *p, const struct probe *k, bool others_do) {
  struct stat s;
  if (stat(device_path(p), &s) < 0) {
    check(others_do ? NOTE : LACK, "/dev/userfaultfd", "%s", errno == ENOENT ? "is not there" : strerror(errno));
    if (!others_do) {
      mend("on a host: Linux 6.1 or later with CONFIG_USERFAULTFD, and a udev rule: doc/deployment.md");
      mend("in a container: docker run --device /dev/userfaultfd ...");
      cost(COST_FULL);
    }
    return false;
  }
  bool allowed = p->pid ? device_allows(p, &s) : k->device == 0;
  struct group *group = getgrgid(s.st_gid);
  char group_name[64];
  snprintf(group_name, sizeof group_name, "%u", (unsigned)s.st_gid);
  check(allowed     ? FINE
        : others_do ? NOTE
                    : LACK,
        "/dev/userfaultfd", "mode %04o, %s:%s: %s", s.st_mode & 07777, user_name(s.st_uid),
        group ? group->gr_name : group_name,
        p->pid ? (allowed ? "may be opened, says its mode" : "may not be opened") : error_text(k->device));
  if (!allowed && !others_do && k->device == EPERM && !p->pid)
    mend_device_group();
  else if (!allowed && !others_do)
    mend_access(p);
  return allowed;
}

static uint64_t sysctl_number(const char *path, uint64_t otherwise) {
  char *text = read_file(path, NULL);
  uint64_t value = text ? strtoull(text, NULL, 10) : otherwise;
  free(text);
  return value;
}

static void check_userfaultfd(const struct patient *p, const struct probe *k) {
  bool sysctl = sysctl_number("/proc/sys/vm/unprivileged_userfaultfd", 0) == 1;
  bool cap = p->caps >> 19 & 1;
  bool by_call = p->pid ? sysctl || cap : k->full == 0;
  check_device(p, k, by_call);
  check(cap ? FINE : NOTE, "CAP_SYS_PTRACE", "%s", cap ? "is there" : "is not there; not needed with the device");
  check(sysctl ? NOTE : FINE, "sysctl", "vm.unprivileged_userfaultfd = %d%s", sysctl,
        sysctl ? ": every process may use it; the device file with a group is the narrower way" : "");
  if (p->pid) return;
  check(k->user == 0 || k->full == 0 || k->device == 0 ? FINE : LACK, "system call", "userfaultfd: %s",
        error_text(k->full == 0 ? 0 : k->user));
  if (k->user == ENOSYS || k->user == EPERM || k->user == KILLED) {
    printf(
        "        A sandbox refuses it (or the kernel lacks CONFIG_USERFAULTFD); /dev/userfaultfd does without it.\n");
  }
}

/* ---- the rest ------------------------------------------------------------------------------------------------------
 */

/* The unit of systemd that started the process: the last part of its control group's name that is one. */
static bool find_service(int pid, char unit[256]) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/cgroup", pid ? pid : (int)getpid());
  char *text = read_file(path, NULL);
  *unit = 0;
  for (char *end = text; end && (end = strstr(end, ".service")); end++) {
    char *start = end;
    while (start > text && start[-1] != '/') start--;
    if (end[8] == '/' || end[8] == '\n') snprintf(unit, 256, "%.*s.service", (int)(end - start), start);
  }
  free(text);
  return *unit;
}

/* All that the library asks of the kernel, but for userfaultfd, which the device does without. */
static void mend_filter(int pid) {
#define X(name)                                                                                                        \
  if (strcmp(#name, "userfaultfd") != 0) printf(" " #name);
  char unit[256];
  if (!find_service(pid, unit)) snprintf(unit, sizeof unit, "NAME.service");
  printf(
      "        Should it refuse the library's calls, or end the process at one: for a service of systemd whose unit "
      "has\n"
      "        a SystemCallFilter= (without one, this would be the filter, and the service could make no other call),\n"
      "        in /etc/systemd/system/%s.d/zz-mesh-uffd-filter.conf:\n",
      unit);
  mend("[Service]");
  printf("        do:   SystemCallFilter=");
  MU_SYS_LIST(X)
  printf(" io_uring_register rseq set_robust_list\n");
#undef X
  printf("        then, as root:\n");
  printf("        do:   systemctl daemon-reload && systemctl restart %s\n", unit);
  printf("        For a container:\n");
  mend("docker run --security-opt seccomp=seccomp.json ... (see doc/deployment.md)");
  cost(
      "io_uring has had many security bugs, and may be left out; the others concern the process itself: no new rights");
}

static void check_sandbox(const struct patient *p, const struct probe *k) {
  static const char *const modes[] = {"none", "strict", "a filter"};
  check(p->seccomp ? NOTE : FINE, "seccomp", "%s", p->seccomp <= 2 ? modes[p->seccomp] : "?");
  if (p->seccomp == 2) mend_filter(p->pid);
  if (p->pid) return;
  check(k->close_range ? LACK : FINE, "close_range", "%s", error_text(k->close_range));
  if (k->close_range) {
    mend("Linux 5.9 or later; in a container: docker run --security-opt seccomp=seccomp.json ... (see "
         "doc/deployment.md)");
    cost("the profile allows close_range and process_madvise of oneself: no new rights");
  }
  check(k->pagemap ? LACK : FINE, "/proc/self/pagemap", "%s", error_text(k->pagemap));
  if (k->pagemap) mend("mount /proc, readable, where the program runs");
  bool old = k->process_madvise == EINVAL || k->process_madvise == ENOSYS;
  check(k->process_madvise ? NOTE : FINE, "process_madvise", "%s",
        old ? "Linux 6.13 or later needed; pages go back by other ways" : error_text(k->process_madvise));
}

static void check_ring(const struct probe *k) {
  uint64_t disabled = sysctl_number("/proc/sys/kernel/io_uring_disabled", 0);
  if (k->ring == 0) {
    check(FINE, "io_uring", "allowed");
    return;
  }
  check(NOTE, "io_uring", "%s (kernel.io_uring_disabled = %" PRIu64 "); it works without, with more system calls",
        error_text(k->ring), disabled);
  if (disabled) {
    mend("sysctl -w kernel.io_uring_disabled=0");
    cost("io_uring has had many security bugs; leave it off where untrusted programs run");
  }
}

static void check_mappings(const struct patient *p) {
  uint64_t most = max_mappings();
  if (!p->pid || p->found != FOUND) {
    check(FINE, "vm.max_map_count", "%" PRIu64 ": meshing may use up to 80 %% of it, and leaves 8000", most);
    return;
  }
  uint64_t have = memory_of(p->pid, true).mappings, budget = p->target.page.mapping_budget;
  uint64_t used = p->target.page.totals.mappings;
  bool tight = (budget && used > budget / 10 * 9) || p->target.page.refused_mappings;
  check(tight ? LACK : FINE, "vm.max_map_count",
        "%" PRIu64 "; the process has %" PRIu64 ", meshing %" PRIu64 " of a budget of %" PRIu64, most, have, used,
        budget);
  if (!tight) return;
  char line[128];
  snprintf(line, sizeof line, "sysctl -w vm.max_map_count=%" PRIu64, most * 4);
  mend(line);
  cost("a process may make the kernel keep more mappings, some 200 bytes each; no rights");
}

static void check_huge_pages(void) {
  char *text = read_file("/sys/kernel/mm/transparent_hugepage/enabled", NULL);
  char *shmem = read_file("/sys/kernel/mm/transparent_hugepage/shmem_enabled", NULL);
  if (text)
    check(FINE, "huge pages", "%.*s; with always, large blocks and the growth of large heaps have them",
          (int)strcspn(text, "\n"), text);
  else
    check(FINE, "huge pages", "the kernel has none");
  if (shmem && (strstr(shmem, "[always]") || strstr(shmem, "[force]"))) {
    check(NOTE, "huge pages", "shmem_enabled makes mesh files larger than what they hold");
    mend("echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    cost("none for security; programs that gain from huge pages in shared memory must ask for them");
  }
  free(text);
  free(shmem);
}

static void check_limits(const struct patient *p) {
  struct rlimit size = {RLIM_INFINITY, RLIM_INFINITY};
  uint64_t overcommit = sysctl_number("/proc/sys/vm/overcommit_memory", 0);
  prlimit(p->pid, RLIMIT_FSIZE, NULL, &size);
  if (size.rlim_cur < 1 << 20) {
    check(LACK, "file size limit", "%" PRIu64 " bytes: mesh files of 1 MiB cannot be made", (uint64_t)size.rlim_cur);
    mend("ulimit -f unlimited");
    cost("the program may write larger files");
  }
  if (overcommit == 2)
    check(NOTE, "overcommit", "vm.overcommit_memory = 2: mesh files and copies count against the commit limit");
}

static void check_standing_still(const struct patient *p, unsigned tier) {
  if (tier <= MESH_UFFD_TIER_FULL || !p->pid) return;
  if (p->pinned || p->locked)
    check(LACK, "pinned memory", "%" PRIu64 " kB pinned, %" PRIu64 " kB locked: nothing is meshed in tiers 2 to 4",
          p->pinned, p->locked);
  /* The mesher is a thread too. */
  if (tier > MESH_UFFD_TIER_FULL_WP && p->threads > 2)
    check(LACK, "threads", "%" PRIu64 ", with the library's: nothing is meshed in tiers 3 and 4", p->threads);
}

/* ---- a process -----------------------------------------------------------------------------------------------------
 */

/* What the variable NAME= is set to among the strings of an environment; NULL: it is not there. */
static const char *variable_of(const char *strings, size_t length, const char *name) {
  for (const char *at = strings; at && at < strings + length; at += strlen(at) + 1)
    if (strncmp(at, name, strlen(name)) == 0) return at + strlen(name);
  return NULL;
}

static void say_of_library(const struct patient *p) {
  char path[64], why[512], how[512] = "", exe[4096], run[4200];
  snprintf(path, sizeof path, "/proc/%d/exe", p->pid);
  ssize_t n = readlink(path, exe, sizeof exe - 1);
  exe[n > 0 ? n : 0] = 0;
  snprintf(path, sizeof path, "/proc/%d/environ", p->pid);
  size_t length = 0;
  char *environment = read_file(path, &length);
  const char *denied = variable_of(environment, length, "MESH_UFFD_DENY=");
  if (p->found == NOTHING_YET) {
    bool aside = program_denied(p->target.name, exe, denied, why);
    check(aside ? LACK : NOTE, "library", "is there%s%s", aside ? ", and stands aside: " : "",
          aside ? why : "; the heap is smaller than 8 MiB and left alone");
    free(environment);
    return;
  }
  check(LACK, "library", "process %d (%s) does not run under mesh-uffd", p->pid, p->target.name);
  if (program_effect(exe, denied, why, how) != AFFECTED)
    printf("        %s\n", why);
  else if (environment)
    printf("        its environment %s LD_PRELOAD\n",
           variable_of(environment, length, "LD_PRELOAD=") ? "has" : "has no");
  snprintf(run, sizeof run, "mesh-uffd run -- %s ...", *exe ? exe : p->target.name);
  mend(*how ? how : run);
  free(environment);
}

static void describe_process(struct patient *p) {
  p->found = target_open(&p->target, p->pid);
  if (p->found == GONE || p->found == FORBIDDEN || p->found == OTHER_VERSION || p->found == UNREADABLE) {
    complain_of(&p->target, p->found);
    exit((int)status_of(p->found));
  }
  if (!read_status(p)) {
    complain_of(&p->target, GONE);
    exit(NO_PROCESS);
  }
}

static unsigned say_tier_of_process(const struct patient *p) {
  const struct mesh_uffd_stats_page *page = &p->target.page;
  printf("process %d (%s), user %s\n", p->pid, p->target.name, user_name(p->uid));
  if (p->found != FOUND) {
    printf("tier: not known\n\n");
    return MESH_UFFD_TIER_UNKNOWN;
  }
  unsigned tier = page->totals.tier;
  printf("tier %u, %s: %s\n", tier, tier_name(tier), what_tier_means(tier, true));
  printf("why: %s\n\n", page->tier_reason);
  if (!page->meshing) check(LACK, "meshing", "is turned off (MESH_UFFD_MESH=0) or paused (mesh_uffd_pause)");
  return tier;
}

static unsigned say_tier_of_user(const struct patient *p, const struct probe *k, struct version v) {
  unsigned tier = best_tier(k, v);
  printf("user %s\ntier %u, %s: %s\n\n", user_name(p->uid), tier, tier_name(tier),
         what_tier_means(tier, !k->close_range && !k->pagemap));
  return tier;
}

static int doctor_run(int argc, char **argv) {
  static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
  struct patient p = {.found = FOUND};
  struct probe k = {0};
  char release[65];
  int c;
  while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
    if (c != 'h') die_usage("doctor", "wrong option");
    fputs(doctor_command.help, stdout);
    return DONE;
  }
  if (argc - optind > 1) die_usage("doctor", "at most one process");
  struct version v = kernel_version(release);
  if (optind < argc) p.pid = parse_pid("doctor", argv[optind]);
  if (p.pid)
    describe_process(&p);
  else if (!read_status(&p))
    die(FAILED, "/proc/self/status: %s", strerror(errno));
  probe_kernel(&k);
  unsigned tier = p.pid ? say_tier_of_process(&p) : say_tier_of_user(&p, &k, v);
  if (p.found == NOT_OURS || p.found == NOTHING_YET) say_of_library(&p);
  check_kernel(v, release);
  check_userfaultfd(&p, &k);
  check_sandbox(&p, &k);
  if (!p.pid) check_ring(&k);
  check_mappings(&p);
  check_huge_pages();
  check_limits(&p);
  check_standing_still(&p, tier);
  if (p.pid) target_close(&p.target);
  return lacks ? FAILED : DONE;
}

const struct command doctor_command = {
    "doctor", "what the kernel allows, and how to get more",
    "usage: mesh-uffd doctor [PID]\n\n"
    "Says which tier this user, or that process, gets, and why; looks at everything the tier depends on; names for "
    "each\n"
    "thing that lacks the lines that mend it, and what they cost in security.\n\n"
    "  -h, --help  this text\n\n"
    "Exit status: 0 nothing lacks; 1 something does; 2 wrong arguments; 3 no such process; 4 not permitted.\n",
    doctor_run};
