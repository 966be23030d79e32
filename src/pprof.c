/* SPDX-License-Identifier: Apache-2.0 */
/* Formats: Protocol Buffers' encoding; RFC 1952 (gzip) with stored blocks of RFC 1951 (deflate). */
#include "src/pprof.h"
#include "src/sys.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>

enum { WIRE_NUMBER = 0, WIRE_BYTES = 2, MAX_NUMBER = 10, PACKED_LENGTH = 3 };

/* ---- the frame --------------------------------------------------------------------------------------------------- */

/* Four bits at a time: the polynomial of RFC 1952 needs a table of 16 then. */
static uint32_t crc_of(uint32_t crc, const uint8_t *bytes, size_t n) {
  static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                     0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                     0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
  for (crc = ~crc; n; n--) {
    crc ^= *bytes++;
    crc = table[crc & 15] ^ crc >> 4;
    crc = table[crc & 15] ^ crc >> 4;
  }
  return ~crc;
}

static void write_out(struct mu_pprof *out, const void *bytes, size_t n) {
  const char *at = bytes;
  while (n && !out->err) {
    ssize_t done = mu_write(out->fd, at, n);
    if (done < 0 && done != -EINTR) out->err = (int)-done;
    if (done > 0) at += done, n -= (size_t)done;
  }
}

/* What is in the buffer, as a block of its own: whether it is the last, its length, and that inverted. */
static void flush(struct mu_pprof *out, bool last) {
  uint16_t n = (uint16_t)out->used, inverted = (uint16_t)~n;
  uint8_t header[5] = {last, (uint8_t)n, (uint8_t)(n >> 8), (uint8_t)inverted, (uint8_t)(inverted >> 8)};
  write_out(out, header, sizeof header);
  write_out(out, out->block, n);
  out->crc = crc_of(out->crc, out->block, n);
  out->length += n;
  out->used = 0;
}

static void put(struct mu_pprof *out, const void *bytes, size_t n) {
  const char *from = bytes;
  while (n) {
    size_t now = mu_min(n, sizeof out->block - out->used);
    memcpy(out->block + out->used, from, now);
    out->used += (uint32_t)now;
    from += now;
    n -= now;
    if (out->used == sizeof out->block) flush(out, false);
  }
}

void mu_pprof_open(struct mu_pprof *out, const char *path) {
  enum { DEFLATE = 8, UNIX = 3 };
  static const uint8_t header[10] = {0x1f, 0x8b, DEFLATE, [9] = UNIX};
  out->fd = (int)mu_sys_call(MU_SYS_openat, AT_FDCWD, (long)path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600, 0, 0);
  out->err = out->fd < 0 ? -out->fd : 0;
  out->crc = out->length = out->used = 0;
  write_out(out, header, sizeof header);
}

int mu_pprof_close(struct mu_pprof *out) {
  if (out->fd < 0) return out->err;
  flush(out, true);
  uint32_t trailer[2] = {out->crc, out->length};
  write_out(out, trailer, sizeof trailer);
  int err = mu_close(out->fd);
  return out->err ? out->err : -err;
}

/* ---- fields ------------------------------------------------------------------------------------------------------ */

static unsigned number(uint8_t *to, uint64_t value) {
  unsigned n = 0;
  for (; value >= 0x80; value >>= 7) to[n++] = (uint8_t)(value | 0x80);
  to[n++] = (uint8_t)value;
  return n;
}

static void put_number(struct mu_pprof *out, uint64_t value) {
  uint8_t bytes[MAX_NUMBER];
  put(out, bytes, number(bytes, value));
}

void mu_pprof_number(struct mu_pprof *out, unsigned field, uint64_t value) {
  put_number(out, field << 3 | WIRE_NUMBER);
  put_number(out, value);
}

void mu_pprof_bytes(struct mu_pprof *out, unsigned field, const void *bytes, size_t n) {
  put_number(out, field << 3 | WIRE_BYTES);
  put_number(out, n);
  put(out, bytes, n);
}

void mu_pprof_text(struct mu_pprof *out, unsigned field, const char *text) {
  mu_pprof_bytes(out, field, text, strlen(text));
}

void mu_pprof_message(struct mu_pprof *out, unsigned field, const struct mu_message *m) {
  mu_pprof_bytes(out, field, m->bytes, m->used);
}

static bool has_room(const struct mu_message *m, size_t n) {
  return sizeof m->bytes - m->used >= n;
}

void mu_value(struct mu_message *m, uint64_t value) {
  if (has_room(m, MAX_NUMBER)) m->used += number(m->bytes + m->used, value);
}

void mu_number(struct mu_message *m, unsigned field, uint64_t value) {
  if (!has_room(m, 2 * MAX_NUMBER)) return;
  mu_value(m, field << 3 | WIRE_NUMBER);
  mu_value(m, value);
}

/* The length is filled in at the end, in three bytes, whatever it is. */
uint32_t mu_packed(struct mu_message *m, unsigned field) {
  mu_value(m, field << 3 | WIRE_BYTES);
  uint32_t start = m->used;
  if (has_room(m, PACKED_LENGTH)) m->used += PACKED_LENGTH;
  return start;
}

void mu_packed_end(struct mu_message *m, uint32_t start) {
  uint32_t n = m->used - start - PACKED_LENGTH;
  m->bytes[start] = (uint8_t)(n | 0x80);
  m->bytes[start + 1] = (uint8_t)(n >> 7 | 0x80);
  m->bytes[start + 2] = (uint8_t)(n >> 14);
}

void mu_inner(struct mu_message *m, unsigned field, const struct mu_message *inner) {
  if (!has_room(m, inner->used + 2 * MAX_NUMBER)) return;
  mu_value(m, field << 3 | WIRE_BYTES);
  mu_value(m, inner->used);
  memcpy(m->bytes + m->used, inner->bytes, inner->used);
  m->used += inner->used;
}
