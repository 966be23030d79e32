/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where there is no archive of liburing that the library could contain, it is opened at run time. Its functions that we
 * call then have names of their own, each of which calls the one that was found; without it each fails. Include it
 * before <liburing.h>, which declares them under these names.
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

#endif
