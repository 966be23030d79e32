/* SPDX-License-Identifier: Apache-2.0 */
/* CAP_SYS_PTRACE, which allows full userfaultfd where the device file does not. Capabilities are a thread's own. */
#include "src/sys.h"
#include "uffd/engine.h"
#ifdef MU_OPEN_DEPS
#include "uffd/opened.h"
#endif
#include <cap-ng.h>

static bool known(void) {
  return !mu_sys_refused(MU_SYS_capget) && capng_get_caps_process() == 0;
}

bool mu_caps_have_ptrace(void) {
  return known() && capng_have_capability(CAPNG_EFFECTIVE, CAP_SYS_PTRACE);
}

bool mu_caps_drop_ptrace(void) {
  if (!known()) return false;
  if (!capng_have_capability(CAPNG_EFFECTIVE, CAP_SYS_PTRACE) &&
      !capng_have_capability(CAPNG_PERMITTED, CAP_SYS_PTRACE))
    return true;
  if (capng_update(CAPNG_DROP, CAPNG_EFFECTIVE | CAPNG_PERMITTED | CAPNG_INHERITABLE, CAP_SYS_PTRACE) != 0)
    return false;
  /* An ambient capability goes with the permitted one. */
  return !mu_sys_refused(MU_SYS_capset) && capng_apply(CAPNG_SELECT_CAPS) == 0;
}
