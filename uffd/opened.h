/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where there are no archives of liburing and libcap-ng that the library could contain, they are opened at run time.
 * Their functions that we call then have names of their own, each of which calls the one that was found; without it
 * each fails. Include it before <liburing.h> and <cap-ng.h>, which declare them under these names.
 */
#ifndef MU_OPENED_H
#define MU_OPENED_H

#define __io_uring_get_cqe               mu_opened_get_cqe
#define io_uring_queue_exit              mu_opened_queue_exit
#define io_uring_queue_init_params       mu_opened_queue_init_params
#define io_uring_register_sync_cancel    mu_opened_register_sync_cancel
#define io_uring_ring_dontfork           mu_opened_ring_dontfork
#define io_uring_submit                  mu_opened_submit
#define io_uring_submit_and_wait_timeout mu_opened_submit_and_wait_timeout

#define capng_apply            mu_opened_apply
#define capng_get_caps_process mu_opened_get_caps_process
#define capng_have_capability  mu_opened_have_capability
#define capng_update           mu_opened_update

#endif
