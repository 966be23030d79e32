/* SPDX-License-Identifier: Apache-2.0 */
/* CAP_SYS_PTRACE, which allows full userfaultfd where the device file does not. Capabilities are a thread's own. */
#include "uffd/engine.h"
#include <cap-ng.h>

bool mu_caps_have_ptrace(void) {
  return capng_get_caps_process() == 0 && capng_have_capability(CAPNG_EFFECTIVE, CAP_SYS_PTRACE);
}

bool mu_caps_drop_ptrace(void) {
  if (!mu_caps_have_ptrace()) return true;
  if (capng_update(CAPNG_DROP, CAPNG_EFFECTIVE | CAPNG_PERMITTED | CAPNG_INHERITABLE, CAP_SYS_PTRACE) != 0)
    return false;
  return capng_apply(CAPNG_SELECT_CAPS) == 0; /* an ambient capability goes with the permitted one */
}
