/* SPDX-License-Identifier: Apache-2.0 */
/* A file of protocol buffer fields in a gzip frame, uncompressed: written as it is made, in a buffer of fixed size. */
#ifndef MU_PPROF_H
#define MU_PPROF_H

#include "src/common.h"

enum { MU_PPROF_BLOCK = 32768, MU_PPROF_MESSAGE = 8192 };

struct mu_pprof {
  int fd, err; /* err: the first errno, after which nothing is written */
  uint32_t crc, length, used;
  uint8_t block[MU_PPROF_BLOCK];
};

/* A message inside of the file's, whose length is needed before it; what has no room in it is cut. */
struct mu_message {
  uint32_t used;
  uint8_t bytes[MU_PPROF_MESSAGE];
};

/* Makes the file, or empties it: readable for its owner alone. Sets err. */
void mu_pprof_open(struct mu_pprof *out, const char *path);
/* The end of the frame. Returns 0 or the first errno. */
int mu_pprof_close(struct mu_pprof *out);

/* Fields of the outer message. */
void mu_pprof_number(struct mu_pprof *out, unsigned field, uint64_t value);
void mu_pprof_bytes(struct mu_pprof *out, unsigned field, const void *bytes, size_t n);
void mu_pprof_text(struct mu_pprof *out, unsigned field, const char *text);
void mu_pprof_message(struct mu_pprof *out, unsigned field, const struct mu_message *m);

/* Fields of an inner one. mu_packed: its values follow, with mu_value, up to mu_packed_end. */
void mu_number(struct mu_message *m, unsigned field, uint64_t value);
void mu_value(struct mu_message *m, uint64_t value);
uint32_t mu_packed(struct mu_message *m, unsigned field);
void mu_packed_end(struct mu_message *m, uint32_t start);
void mu_inner(struct mu_message *m, unsigned field, const struct mu_message *inner);

#endif
