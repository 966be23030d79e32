/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Probes for tracers (USDT, provider mesh_uffd): an instruction that does nothing, and a note of where it is and where
 * its arguments are. Without sys/sdt.h at build time there are none.
 *
 *   pass(address, pages, ns, units)     a barrier was closed and opened again, and so many units of it are meshed
 *   meshed(address, pages, file)        units were mapped onto a mesh file
 *   waited(address, ns)                 a touch of closed memory was resolved
 *   refused(address, reason)            could not be meshed: enum mu_refusal
 *   reclaimed(bytes)                    unused pages were given back
 */
#ifndef MU_PROBE_H
#define MU_PROBE_H

enum mu_refusal {
  MU_REFUSED_KERNEL = 0, /* a page: the kernel would not move it */
  MU_REFUSED_BUSY,       /* units, from here on */
  MU_REFUSED_EXEMPT,
  MU_REFUSED_OVERLAP,
  MU_REFUSED_SHARED,
  MU_REFUSED_MAPPING,
};

#ifdef MU_HAVE_SDT
#include <sys/sdt.h>
#define MU_PROBE1(name, a)          DTRACE_PROBE1(mesh_uffd, name, a)
#define MU_PROBE2(name, a, b)       DTRACE_PROBE2(mesh_uffd, name, a, b)
#define MU_PROBE3(name, a, b, c)    DTRACE_PROBE3(mesh_uffd, name, a, b, c)
#define MU_PROBE4(name, a, b, c, d) DTRACE_PROBE4(mesh_uffd, name, a, b, c, d)
#else
#define MU_PROBE1(name, a)          ((void)(a))
#define MU_PROBE2(name, a, b)       ((void)(a), (void)(b))
#define MU_PROBE3(name, a, b, c)    ((void)(a), (void)(b), (void)(c))
#define MU_PROBE4(name, a, b, c, d) ((void)(a), (void)(b), (void)(c), (void)(d))
#endif

#endif
