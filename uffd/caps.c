/* SPDX-License-Identifier: Apache-2.0 */
/* CAP_SYS_PTRACE without libcap-ng (--without-libcap-ng); else this is done by caps_ng.c. */
#include "src/sys.h"
#include "uffd/engine.h"
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

bool mu_caps_drop_ptrace(void) {
  struct set s;
  if (!get(&s)) return false;
  struct __user_cap_data_struct *d = &s.data[WORD];
  if (!((d->effective | d->permitted) & BIT)) return true;
  d->effective &= ~(unsigned)BIT;
  d->permitted &= ~(unsigned)BIT; /* an ambient capability goes with it */
  d->inheritable &= ~(unsigned)BIT;
  return mu_sys_call(MU_SYS_capset, (long)&s.header, (long)s.data, 0, 0, 0, 0) == 0;
}
