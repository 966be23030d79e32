/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CAP_SYS_PTRACE, which allows full userfaultfd where the device file does not. Capabilities are a thread's own.
 * Whether it is there is asked of the kernel directly: libcap-ng reads files by stdio, whose locks may be held for ever
 * in the child of a fork that did not go through libc. Such a child has nothing to give up: its parent has.
 */
#include "src/sys.h"
#include "uffd/engine.h"
#ifdef MU_OPEN_DEPS
#include "uffd/opened.h"
#endif
#include <cap-ng.h>
#include <linux/capability.h>

enum { BIT = 1 << (CAP_SYS_PTRACE % 32), WORD = CAP_SYS_PTRACE / 32 };

static bool get(struct __user_cap_data_struct *mine) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0, 0, 0}};
  int r = (int)mu_sys_call(MU_SYS_capget, (long)&header, (long)data, 0, 0, 0, 0);
  *mine = data[WORD];
  return r == 0;
}

bool mu_caps_have_ptrace(void) {
  struct __user_cap_data_struct mine;
  return get(&mine) && (mine.effective & BIT);
}

bool mu_caps_drop_ptrace(void) {
  struct __user_cap_data_struct mine;
  if (!get(&mine)) return false;
  if (!((mine.effective | mine.permitted) & BIT)) return true;
  if (capng_get_caps_process() != 0 ||
      capng_update(CAPNG_DROP, CAPNG_EFFECTIVE | CAPNG_PERMITTED | CAPNG_INHERITABLE, CAP_SYS_PTRACE) != 0)
    return false;
  /* An ambient capability goes with the permitted one. */
  return !mu_sys_refused(MU_SYS_capset) && capng_apply(CAPNG_SELECT_CAPS) == 0;
}
