/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CAP_SYS_PTRACE, which allows full userfaultfd where the device file does not. Capabilities are a thread's own.
 * Whether it is there is asked of the kernel directly. It is given up by libcap-ng, which is opened only where that has
 * been asked for: contained in the library its constructor would read files in every process, and its functions would
 * bring fifty of libc's with them, each looked up at every start. Without libcap-ng, and in a static program, which
 * cannot open one, it is given up by capset.
 */
#include "src/sys.h"
#include "uffd/engine.h"
#include "uffd/open_library.h"
#include <linux/capability.h>

struct set {
  struct __user_cap_header_struct header;
  struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
};
enum { BIT = 1 << (CAP_SYS_PTRACE % 32), WORD = CAP_SYS_PTRACE / 32 };

static bool get(struct set *s) {
  *s = (struct set){.header = {.version = _LINUX_CAPABILITY_VERSION_3}};
  return mu_sys_call(MU_SYS_capget, (long)&s->header, (long)s->data, 0, 0, 0, 0) == 0;
}

bool mu_caps_have_ptrace(void) {
  struct set s;
  return get(&s) && (s.data[WORD].effective & BIT);
}

static bool drop_by_capset(struct set *s) {
  struct __user_cap_data_struct *d = &s->data[WORD];
  d->effective &= ~(unsigned)BIT;
  d->permitted &= ~(unsigned)BIT; /* an ambient capability goes with it */
  d->inheritable &= ~(unsigned)BIT;
  return mu_sys_call(MU_SYS_capset, (long)&s->header, (long)s->data, 0, 0, 0, 0) == 0;
}

#ifdef MU_HAVE_LIBCAP_NG

#include <cap-ng.h>

static struct {
  int (*get_caps_process)(void);
  int (*update)(capng_act_t, capng_type_t, unsigned);
  int (*apply)(capng_select_t);
} found;

void mu_caps_open(void) {
  static const struct mu_wanted wanted[] = {{"capng_get_caps_process", &found.get_caps_process},
                                            {"capng_update", &found.update},
                                            {"capng_apply", &found.apply},
                                            {NULL, NULL}};
  if (!mu_open_library(MU_LIBCAP_NG_SONAME, wanted)) found.get_caps_process = NULL;
}

/* libcap-ng reads files by stdio, whose locks may be held for ever in the child of a fork that did not go through libc.
 * Such a child has nothing to give up: its parent has. */
static bool drop(struct set *s) {
  if (!found.get_caps_process) return drop_by_capset(s);
  return found.get_caps_process() == 0 &&
         found.update(CAPNG_DROP, CAPNG_EFFECTIVE | CAPNG_PERMITTED | CAPNG_INHERITABLE, CAP_SYS_PTRACE) == 0 &&
         /* An ambient capability goes with the permitted one. */
         !mu_sys_refused(MU_SYS_capset) && found.apply(CAPNG_SELECT_CAPS) == 0;
}

#else

void mu_caps_open(void) {}

static bool drop(struct set *s) {
  return drop_by_capset(s);
}

#endif

bool mu_caps_drop_ptrace(void) {
  struct set s;
  if (!get(&s)) return false;
  return !((s.data[WORD].effective | s.data[WORD].permitted) & BIT) || drop(&s);
}
