/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/heap.h"
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#ifdef HAVE_PNG
#include <png.h>
#endif

/* From red, few live objects, to green, many: told apart by their lightness too. */
static const unsigned colours[KINDS] = {
    [ABSENT] = 0xf2f2f2, [UNUSED] = 0xe8d9a8, [LARGE] = 0x8c8c8c,  [FILL_1] = 0xd7301f,
    [FILL_2] = 0xfc8d59, [FILL_3] = 0xd9ef8b, [FILL_4] = 0x66bd63, [FILL_5] = 0x1a6837,
    [MESHED] = 0x9ecae1, [COPIED] = 0x756bb1, [PACKED] = 0x08519c,
};

enum { MAX_CELLS = 120000, MAX_LINKS = 400, GAP = 40, MARGIN = 16 };

/* One of the two halves of the picture: cells in rows, each of `each` pages. */
struct panel {
  uint8_t *cells;
  size_t count, columns, rows;
};

struct picture {
  struct panel before, after;
  size_t each;   /* pages of a cell */
  unsigned side; /* of a cell, in pixels */
};

/* What most of the pages are. */
static uint8_t kind_of_cell(const struct heap_page *pages, size_t n) {
  size_t counts[KINDS] = {0}, best = ABSENT;
  for (size_t i = 0; i < n; i++) counts[pages[i].kind]++;
  for (size_t k = 1; k < KINDS; k++)
    if (counts[k] > counts[best] || (best == ABSENT && counts[k])) best = k;
  return (uint8_t)best;
}

static struct panel make_panel(const struct heap_page *pages, size_t count, size_t each, size_t columns) {
  struct panel p = {.count = (count + each - 1) / each, .columns = columns};
  p.rows = (p.count + columns - 1) / columns;
  p.cells = calloc(p.count + 1, 1);
  if (!p.cells) die(FAILED, "no memory");
  for (size_t i = 0; i < p.count; i++)
    p.cells[i] = kind_of_cell(pages + i * each, count - i * each < each ? count - i * each : each);
  return p;
}

/* A row is a run, or several: units then stand below one another. */
static struct picture make_picture(const struct heap *h) {
  struct picture p = {.each = 1};
  while (h->count / p.each > MAX_CELLS) p.each *= 2;
  size_t columns = 64;
  while (columns * columns < h->count / p.each) columns += 64;
  p.side = columns <= 128 ? 6 : columns <= 256 ? 3 : 2;
  p.before = make_panel(h->pages, h->count, p.each, columns);
  p.after = make_panel(h->memory, h->in_memory, p.each, columns);
  return p;
}

/* ---- SVG -----------------------------------------------------------------------------------------------------------
 */

/* Neighbours of one colour are one rectangle. */
static void write_panel(FILE *to, const struct picture *p, const struct panel *panel, unsigned left, unsigned top) {
  for (unsigned kind = 0; kind < KINDS; kind++) {
    bool any = false;
    for (size_t i = 0, n; i < panel->count; i += n) {
      size_t row_end = (i / panel->columns + 1) * panel->columns;
      for (n = 1; i + n < panel->count && i + n < row_end && panel->cells[i + n] == panel->cells[i]; n++) {
      }
      if (panel->cells[i] != kind) continue;
      if (!any) fprintf(to, "<path fill=\"#%06x\" d=\"", colours[kind]);
      any = true;
      fprintf(to, "M%zu %zuh%zuv%uh-%zuz", left + i % panel->columns * p->side, top + i / panel->columns * p->side,
              n * p->side, p->side, n * p->side);
    }
    if (any) fprintf(to, "\"/>\n");
  }
}

static void write_links(FILE *to, const struct picture *p, const struct heap *h, unsigned left, unsigned right,
                        unsigned top) {
  if (h->kinds[MESHED] > MAX_LINKS || p->each > 1) return;
  fprintf(to, "<path fill=\"none\" stroke=\"#08519c\" stroke-width=\"0.5\" stroke-opacity=\"0.5\" d=\"");
  for (size_t i = 0; i < h->count; i++) {
    if (h->pages[i].kind != MESHED) continue;
    size_t k = heap_find_packed(h, h->pages[i].packed), columns = p->before.columns;
    fprintf(to, "M%zu %zuL%zu %zu", left + i % columns * p->side + p->side / 2,
            top + i / columns * p->side + p->side / 2, right + k % columns * p->side + p->side / 2,
            top + k / columns * p->side + p->side / 2);
  }
  fprintf(to, "\"/>\n");
}

static void write_legend(FILE *to, const struct heap *h, unsigned left, unsigned top) {
  unsigned y = top;
  for (unsigned k = 0; k < KINDS; k++) {
    if (!h->kinds[k]) continue;
    fprintf(to, "<rect x=\"%u\" y=\"%u\" width=\"12\" height=\"12\" fill=\"#%06x\"/>", left, y, colours[k]);
    fprintf(to, "<text x=\"%u\" y=\"%u\">%s: %zu</text>\n", left + 18, y + 11, kind_names[k], h->kinds[k]);
    y += 18;
  }
}

static void write_escaped(FILE *to, const char *text) {
  for (; *text; text++)
    if (*text == '<' || *text == '&')
      fprintf(to, "&#%d;", *text);
    else
      fputc(*text, to);
}

static void write_svg(FILE *to, const struct target *t, const struct heap *h, const struct picture *p) {
  unsigned panel = (unsigned)p->before.columns * p->side, top = 72, left = MARGIN, right = MARGIN + panel + GAP;
  unsigned rows = (unsigned)(p->before.rows > p->after.rows ? p->before.rows : p->after.rows) * p->side;
  unsigned legend = right + panel + GAP, height = top + (rows > 220 ? rows : 220) + MARGIN;
  fprintf(to,
          "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%u\" height=\"%u\" font-family=\"sans-serif\" "
          "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
          legend + 210, height);
  fprintf(to, "<text x=\"%u\" y=\"24\" font-size=\"16\">", left);
  write_escaped(to, t->name);
  fprintf(to, " (%d): %.1f MiB of addresses in %.1f MiB of memory</text>\n", t->pid,
          mib((uint64_t)(h->count - h->kinds[ABSENT]) * h->page_size), mib((uint64_t)h->in_memory * h->page_size));
  fprintf(to, "<text x=\"%u\" y=\"44\">a cell is %zu page%s of %zu bytes, a row of 64 cells a run</text>\n", left,
          p->each, p->each > 1 ? "s" : "", h->page_size);
  fprintf(to, "<text x=\"%u\" y=\"%u\">as the program sees it</text>\n", left, top - 8);
  fprintf(to, "<text x=\"%u\" y=\"%u\">as it is in memory</text>\n", right, top - 8);
  write_panel(to, p, &p->before, left, top);
  write_panel(to, p, &p->after, right, top);
  write_links(to, p, h, left, right, top);
  write_legend(to, h, legend, top);
  fprintf(to, "</svg>\n");
}

/* ---- PNG -----------------------------------------------------------------------------------------------------------
 */

#ifdef HAVE_PNG
static void fill(uint8_t *pixels, size_t width, const struct picture *p, const struct panel *panel, size_t left) {
  for (size_t i = 0; i < panel->count; i++) {
    unsigned colour = colours[panel->cells[i]];
    size_t x = left + i % panel->columns * p->side, y = MARGIN + i / panel->columns * p->side;
    for (size_t k = 0; k < (size_t)p->side * p->side; k++) {
      uint8_t *at = pixels + 3 * ((y + k / p->side) * width + x + k % p->side);
      at[0] = (uint8_t)(colour >> 16);
      at[1] = (uint8_t)(colour >> 8);
      at[2] = (uint8_t)colour;
    }
  }
}

static void write_png(FILE *to, const struct picture *p) {
  size_t panel = p->before.columns * p->side, width = 2 * MARGIN + 2 * panel + GAP;
  size_t rows = p->before.rows > p->after.rows ? p->before.rows : p->after.rows, height = 2 * MARGIN + rows * p->side;
  uint8_t *pixels = malloc(3 * width * height);
  if (!pixels) die(FAILED, "no memory");
  memset(pixels, 0xff, 3 * width * height);
  fill(pixels, width, p, &p->before, MARGIN);
  fill(pixels, width, p, &p->after, MARGIN + panel + GAP);
  png_image image = {.version = PNG_IMAGE_VERSION,
                     .width = (png_uint_32)width,
                     .height = (png_uint_32)height,
                     .format = PNG_FORMAT_RGB};
  if (!png_image_write_to_stdio(&image, to, 0, pixels, 0, NULL)) die(FAILED, "PNG: %s", image.message);
  free(pixels);
}
#else
static void write_png(FILE *to, const struct picture *p) {
  (void)to;
  (void)p;
}
#endif

/* ---- the command ---------------------------------------------------------------------------------------------------
 */

static bool ends_with(const char *name, const char *end) {
  size_t n = strlen(name), m = strlen(end);
  return n > m && strcmp(name + n - m, end) == 0;
}

static bool is_png(const char *name) {
  return ends_with(name, ".png");
}

static void print_text(const struct target *t, const struct heap *h) {
  printf("%s (%d), pages of %zu bytes\n", t->name, t->pid, h->page_size);
  for (unsigned k = 0; k < KINDS; k++)
    if (h->kinds[k])
      printf("%10zu  %8.1f MiB  %s\n", h->kinds[k], mib((uint64_t)h->kinds[k] * h->page_size), kind_names[k]);
  printf("%10zu  %8.1f MiB  in memory\n", h->in_memory, mib((uint64_t)h->in_memory * h->page_size));
}

static void write_file(const char *name, const struct target *t, const struct heap *h) {
  FILE *to = strcmp(name, "-") == 0 ? stdout : fopen(name, "we");
  if (!to) die(FAILED, "%s: %s", name, strerror(errno));
  struct picture p = make_picture(h);
  is_png(name) ? write_png(to, &p) : write_svg(to, t, h, &p);
  finish_output(to, name);
  if (to != stdout && fclose(to) != 0) die(FAILED, "%s: %s", name, strerror(errno));
  free(p.before.cells);
  free(p.after.cells);
}

static int map_run(int argc, char **argv) {
  static const struct option options[] = {
      {"output", required_argument, NULL, 'o'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
  const char *output = NULL;
  int c;
  while ((c = getopt_long(argc, argv, "o:h", options, NULL)) >= 0) switch (c) {
    case 'o':
      output = optarg;
      break;
    case 'h':
      fputs(map_command.help, stdout);
      return DONE;
    default:
      die_usage("map", "wrong option");
    }
  if (argc - optind != 1) die_usage("map", "one process is needed");
  if (output && !is_png(output) && !ends_with(output, ".svg") && strcmp(output, "-") != 0)
    die_usage("map", "--output: name a .svg or a .png, or -");
#ifndef HAVE_PNG
  if (output && is_png(output)) die(FAILED, "this command was built without libpng; name a .svg");
#endif
  struct target t;
  struct heap h;
  target_open_or_die(&t, parse_pid("map", argv[optind]));
  heap_read(&t, &h);
  output ? write_file(output, &t, &h) : print_text(&t, &h);
  heap_free(&h);
  target_close(&t);
  return DONE;
}

const struct command map_command = {
    "map", "the heap of a process as a picture",
    "usage: mesh-uffd map [--output FILE] PID\n\n"
    "Draws the heap of a process, a cell for each page, coloured by how much of it is live: on the left as the "
    "program\n"
    "sees it, on the right as it is in memory, where meshed pages share one. Without a file, prints how many pages of\n"
    "each kind there are.\n\n"
    "  -o, --output FILE  FILE.svg, FILE.png, or - for an SVG on standard output\n"
    "  -h, --help         this text\n\n"
    "Exit status: 0 done; 1 failed; 2 wrong arguments; 3 no such process; 4 not permitted; 5 no figures.\n",
    map_run};
