/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/target.h"
#include <getopt.h>
#include <inttypes.h>
#include <string.h>

enum format { TEXT, JSON, OPENMETRICS };

/* The totals that are numbers and nothing more: one list for both machine formats. */
struct figure {
  const char *name, *unit, *what;
  bool counter; /* only grows; else it goes up and down */
  double scale; /* of the unit; 1: a whole number */
  size_t offset;
};
#define TOTAL(field) (offsetof(struct mesh_uffd_stats_page, totals) + offsetof(struct mesh_uffd_stats, field))
#define HEAD(field)  offsetof(struct mesh_uffd_stats_page, field)

static const struct figure figures[] = {
    {"live_bytes", "bytes", "Bytes of live objects, and of slots that threads hold.", false, 1, TOTAL(live_bytes)},
    {"span_bytes", "bytes", "Bytes of spans that hold a live object, meshed ones once each.", false, 1,
     TOTAL(span_bytes)},
    {"large_bytes", "bytes", "Bytes in objects too large for a size class.", false, 1, HEAD(large_bytes)},
    {"unused_bytes", "bytes", "Free memory that may not have gone back yet.", false, 1, HEAD(unused_bytes)},
    {"packed_bytes", "bytes", "Bytes of mesh files in use, an upper bound.", false, 1, TOTAL(packed_bytes)},
    {"meshes", NULL, "Units packed into the packed unit of another.", true, 1, TOTAL(meshes)},
    {"meshed_pages", NULL, "Pages now mapped onto the packed unit of another.", false, 1, TOTAL(meshed_pages)},
    {"freed_bytes", "bytes", "Physical memory given back by meshing.", true, 1, TOTAL(freed_bytes)},
    {"reclaimed_bytes", "bytes", "Physical memory given back by dropping empty pages.", true, 1,
     TOTAL(reclaimed_bytes)},
    {"passes", NULL, "Runs that were closed and opened again.", true, 1, TOTAL(passes)},
    {"pass_seconds", "seconds", "Time in passes.", true, 1e-9, TOTAL(pass_ns)},
    {"longest_pass_seconds", "seconds", "Longest time that one barrier was closed.", false, 1e-9,
     TOTAL(longest_pass_ns)},
    {"faults", NULL, "Touches of closed memory that were resolved.", true, 1, TOTAL(faults)},
    {"longest_fault_seconds", "seconds", "Longest time from reading such a touch to waking it.", false, 1e-9,
     TOTAL(longest_fault_ns)},
    {"mappings", NULL, "Mappings that meshing uses, an upper bound.", false, 1, TOTAL(mappings)},
    {"mapping_budget", NULL, "Mappings that meshing may use; 0: not known yet.", false, 1, HEAD(mapping_budget)},
    {"miniheaps", NULL, "Spans in use.", false, 1, TOTAL(miniheaps)},
    {"miniheap_allocs", NULL, "Spans ever put to use.", true, 1, TOTAL(miniheap_allocs)},
    {"miniheap_frees", NULL, "Spans ever given back.", true, 1, TOTAL(miniheap_frees)},
    {"ring_operations", NULL, "Memory operations by io_uring.", true, 1, TOTAL(ops_ring)},
    {"vector_operations", NULL, "Ranges by process_madvise.", true, 1, TOTAL(ops_vector)},
    {"plain_operations", NULL, "Memory operations by plain calls.", true, 1, TOTAL(ops_plain)},
};
enum { FIGURES = sizeof figures / sizeof *figures };

static const struct {
  const char *name;
  size_t offset;
} reasons[] = {
    {"kernel", TOTAL(refused)},         {"busy", HEAD(refused_busy)},     {"exempt", HEAD(refused_exempt)},
    {"overlap", HEAD(refused_overlap)}, {"shared", HEAD(refused_shared)}, {"no_mapping", HEAD(refused_mappings)},
};
enum { REASONS = sizeof reasons / sizeof *reasons };

static uint64_t value_at(const struct mesh_uffd_stats_page *p, size_t offset) {
  uint64_t v;
  memcpy(&v, (const char *)p + offset, sizeof v);
  return v;
}

struct report {
  const struct target *t;
  struct memory m;
};

/* ---- text ----------------------------------------------------------------------------------------------------------
 */

static void print_latency(uint64_t ns) {
  if (ns == UINT64_MAX)
    printf("longer");
  else if (ns < 1000000)
    printf("%.1f us", (double)ns / 1e3);
  else
    printf("%.1f ms", (double)ns / 1e6);
}

static void print_faults(const struct mesh_uffd_stats_page *p) {
  printf("faults     %" PRIu64, p->totals.faults);
  if (p->totals.faults) {
    printf("; half of them under ");
    print_latency(latency_quantile(p, 0.5));
    printf(", 99 %% under ");
    print_latency(latency_quantile(p, 0.99));
    printf(", longest ");
    print_latency(p->totals.longest_fault_ns);
  }
  printf("\n");
}

static void print_classes(const struct mesh_uffd_stats_page *p) {
  printf("\n  size       spans        live  live %%    free MiB  meshed %%\n");
  for (unsigned i = 0; i < p->classes && i < MESH_UFFD_STATS_CLASSES; i++) {
    const struct mesh_uffd_class_stats *c = &p->class_rows[i];
    if (!c->spans) continue;
    printf("%6u  %10" PRIu64 "  %10" PRIu64 "  %6.1f  %10.1f  %8.1f\n", c->size, c->spans, c->live_slots,
           100 * (double)c->live_slots / (double)(c->spans * c->slots), mib(class_free_bytes(c)),
           c->live_slots ? 100 * (double)c->meshed_slots / (double)c->live_slots : 0);
  }
}

static void print_text(const struct report *r) {
  const struct mesh_uffd_stats_page *p = &r->t->page;
  const struct mesh_uffd_stats *s = &p->totals;
  printf("process    %d %s, library %u.%u.%u in %s\n", r->t->pid, r->t->name, p->library >> 16, p->library >> 8 & 255,
         p->library & 255, r->t->object);
  printf("tier       %s (%s)%s\n", tier_name(s->tier), p->tier_reason, p->meshing ? "" : "; meshing is off");
  if (r->m.pss)
    printf("memory     %.1f MiB (PSS, swap and page tables; RSS is %.1f)\n", mib(memory_sum(&r->m)), mib(r->m.rss));
  else
    printf("memory     RSS %.1f MiB; PSS may not be read\n", mib(r->m.rss));
  printf("live       %.1f MiB, in spans and large objects of %.1f MiB\n", mib(s->live_bytes),
         mib(s->span_bytes + p->large_bytes));
  printf("saved      %.1f MiB now, by mapped pages that share memory\n", mib(memory_saved(&r->m)));
  printf("given back %.1f MiB by meshing, %.1f MiB of unused pages; mesh files hold %.1f MiB\n", mib(s->freed_bytes),
         mib(s->reclaimed_bytes), mib(s->packed_bytes));
  printf("passes     %" PRIu64 ", %.1f ms in all, longest %.1f us\n", s->passes, (double)s->pass_ns / 1e6,
         (double)s->longest_pass_ns / 1e3);
  print_faults(p);
  printf("refused    %" PRIu64 " pages by the kernel; units: %" PRIu64 " busy, %" PRIu64 " exempt, %" PRIu64
         " overlap, %" PRIu64 " shared, %" PRIu64 " no mapping\n",
         s->refused, p->refused_busy, p->refused_exempt, p->refused_overlap, p->refused_shared, p->refused_mappings);
  printf("mappings   %" PRIu64 " of the process, %" PRIu64 " of them for meshing (budget %" PRIu64 ", limit %" PRIu64
         ")\n",
         r->m.mappings, s->mappings, p->mapping_budget, max_mappings());
  printf("age        %.1f s since the figures changed\n", (double)(now_ns() - p->updated_ns) / 1e9);
  print_classes(p);
}

/* ---- JSON ----------------------------------------------------------------------------------------------------------
 */

static void print_escaped(const char *text, bool json) {
  for (; *text; text++)
    if (*text == '"' || *text == '\\')
      printf("\\%c", *text);
    else if ((unsigned char)*text >= ' ')
      putchar(*text);
    else if (json)
      printf("\\u%04x", (unsigned)*text);
    else
      putchar('?');
}

static void print_member(const char *name, const char *text) {
  printf("\"%s\":\"", name);
  print_escaped(text, true);
  printf("\",");
}

static void print_value(const struct figure *f, const struct mesh_uffd_stats_page *p) {
  uint64_t v = value_at(p, f->offset);
  if (f->scale < 1)
    printf("%.9f", (double)v * f->scale);
  else
    printf("%" PRIu64, v);
}

static void print_json_classes(const struct mesh_uffd_stats_page *p) {
  const char *comma = "";
  printf("\"classes\":[");
  for (unsigned i = 0; i < p->classes && i < MESH_UFFD_STATS_CLASSES; i++) {
    const struct mesh_uffd_class_stats *c = &p->class_rows[i];
    if (!c->runs) continue;
    printf("%s{\"size\":%u,\"span_pages\":%u,\"slots\":%u,\"spans\":%" PRIu64 ",\"live_slots\":%" PRIu64
           ",\"meshed_slots\":%" PRIu64 ",\"runs\":%" PRIu64 ",\"meshed_runs\":%u}",
           comma, c->size, c->span_pages, c->slots, c->spans, c->live_slots, c->meshed_slots, c->runs, c->meshed_runs);
    comma = ",";
  }
  printf("],");
}

static void print_json_samples(const struct mesh_uffd_stats_page *p) {
  printf("\"samples\":[");
  for (unsigned i = 0; i < p->samples && i < MESH_UFFD_STATS_SAMPLES; i++) {
    const struct mesh_uffd_sample *s = &p->sample_rows[i];
    printf("%s{\"time_seconds\":%.3f,\"live_bytes\":%" PRIu64 ",\"span_bytes\":%" PRIu64 ",\"unused_bytes\":%" PRIu64
           ",\"packed_bytes\":%" PRIu64 ",\"meshed_pages\":%" PRIu64 ",\"freed_bytes\":%" PRIu64 ",\"passes\":%" PRIu64
           "}",
           i ? "," : "", (double)(s->time_ns - p->started_ns) / 1e9, s->live_bytes, s->span_bytes, s->unused_bytes,
           s->packed_bytes, s->meshed_pages, s->freed_bytes, s->passes);
  }
  printf("]");
}

static void print_json(const struct report *r) {
  const struct mesh_uffd_stats_page *p = &r->t->page;
  printf("{\"pid\":%d,", r->t->pid);
  print_member("name", r->t->name);
  printf("\"library\":\"%u.%u.%u\",\"page_version\":%u,", p->library >> 16, p->library >> 8 & 255, p->library & 255,
         p->version);
  printf("\"tier\":%u,", p->totals.tier);
  print_member("tier_name", tier_name(p->totals.tier));
  print_member("tier_reason", p->tier_reason);
  printf("\"meshing\":%s,\"page_size\":%u,\"age_seconds\":%.3f,", p->meshing ? "true" : "false", p->totals.page_size,
         (double)(now_ns() - p->updated_ns) / 1e9);
  printf("\"memory\":{\"pss_bytes\":%" PRIu64 ",\"rss_bytes\":%" PRIu64 ",\"swap_bytes\":%" PRIu64
         ",\"page_table_bytes\":%" PRIu64 ",\"saved_bytes\":%" PRIu64 ",\"mappings\":%" PRIu64 "},",
         r->m.pss, r->m.rss, r->m.swap, r->m.tables, memory_saved(&r->m), r->m.mappings);
  for (size_t i = 0; i < FIGURES; i++) {
    printf("\"%s\":", figures[i].name);
    print_value(&figures[i], p);
    putchar(',');
  }
  printf("\"refused\":{");
  for (size_t i = 0; i < REASONS; i++)
    printf("%s\"%s\":%" PRIu64, i ? "," : "", reasons[i].name, value_at(p, reasons[i].offset));
  printf("},\"fault_latency_ns\":[");
  for (unsigned i = 0, first = 1; i < MESH_UFFD_STATS_LATENCIES; i++)
    if (p->fault_latency[i])
      printf("%s{\"below\":%" PRIu64 ",\"faults\":%" PRIu64 "}", first ? "" : ",",
             i < 63 ? (uint64_t)2 << i : UINT64_MAX, p->fault_latency[i]),
          first = 0;
  printf("],");
  print_json_classes(p);
  print_json_samples(p);
  printf("}\n");
}

/* ---- OpenMetrics ---------------------------------------------------------------------------------------------------
 */

static void print_labels(const struct report *r) {
  printf("pid=\"%d\",comm=\"", r->t->pid);
  print_escaped(r->t->name, false);
  printf("\"");
}

static void print_family(const char *name, const char *type, const char *unit, const char *what) {
  printf("# TYPE mesh_uffd_%s %s\n", name, type);
  if (unit) printf("# UNIT mesh_uffd_%s %s\n", name, unit);
  printf("# HELP mesh_uffd_%s %s\n", name, what);
}

static void print_sample(const struct report *r, const char *name, const char *more) {
  printf("mesh_uffd_%s{", name);
  print_labels(r);
  printf("%s} ", more);
}

static void print_gauge(const struct report *r, const char *name, const char *unit, const char *what, uint64_t value) {
  print_family(name, "gauge", unit, what);
  print_sample(r, name, "");
  printf("%" PRIu64 "\n", value);
}

static void print_figure(const struct report *r, const struct figure *f) {
  char sample[64];
  print_family(f->name, f->counter ? "counter" : "gauge", f->unit, f->what);
  snprintf(sample, sizeof sample, "%s%s", f->name, f->counter ? "_total" : "");
  print_sample(r, sample, "");
  print_value(f, &r->t->page);
  putchar('\n');
}

static void print_histogram(const struct report *r) {
  const struct mesh_uffd_stats_page *p = &r->t->page;
  enum { FROM = 9, TO = 30 }; /* 1 us to 2 s */
  uint64_t sum = 0;
  char bucket[64];
  /* No _count: it goes with _sum, which is not known. */
  print_family("fault_latency_seconds", "histogram", "seconds", "From reading a touch of closed memory to waking it.");
  for (unsigned i = 0; i < MESH_UFFD_STATS_LATENCIES; i++) {
    sum += p->fault_latency[i];
    if (i < FROM || i > TO) continue;
    snprintf(bucket, sizeof bucket, ",le=\"%.9f\"", (double)((uint64_t)2 << i) / 1e9);
    print_sample(r, "fault_latency_seconds_bucket", bucket);
    printf("%" PRIu64 "\n", sum);
  }
  print_sample(r, "fault_latency_seconds_bucket", ",le=\"+Inf\"");
  printf("%" PRIu64 "\n", sum);
}

static void print_refused(const struct report *r) {
  char label[64];
  print_family("refused", "counter", NULL, "What could not be meshed, by reason: pages by the kernel, else units.");
  for (size_t i = 0; i < REASONS; i++) {
    snprintf(label, sizeof label, ",reason=\"%s\"", reasons[i].name);
    print_sample(r, "refused_total", label);
    printf("%" PRIu64 "\n", value_at(&r->t->page, reasons[i].offset));
  }
}

static void print_class_family(const struct report *r, const char *name, const char *what, size_t offset) {
  char label[64];
  print_family(name, "gauge", NULL, what);
  for (unsigned i = 0; i < r->t->page.classes && i < MESH_UFFD_STATS_CLASSES; i++) {
    const struct mesh_uffd_class_stats *c = &r->t->page.class_rows[i];
    uint64_t value;
    if (!c->runs) continue;
    memcpy(&value, (const char *)c + offset, sizeof value);
    snprintf(label, sizeof label, ",size=\"%u\"", c->size);
    print_sample(r, name, label);
    printf("%" PRIu64 "\n", value);
  }
}

static void print_openmetrics(const struct report *r) {
  const struct mesh_uffd_stats_page *p = &r->t->page;
  char label[400];
  print_family("process", "info", NULL, "What the process runs under.");
  snprintf(label, sizeof label, ",version=\"%u.%u.%u\",tier=\"%s\"", p->library >> 16, p->library >> 8 & 255,
           p->library & 255, tier_name(p->totals.tier));
  print_sample(r, "process_info", label);
  printf("1\n");
  print_gauge(r, "tier", NULL, "What the kernel allows: 1 is the best, 4 none, 0 not known yet.", p->totals.tier);
  print_gauge(r, "meshing", NULL, "1: meshing is on.", p->meshing);
  print_gauge(r, "process_mappings", NULL, "Mappings of the process.", r->m.mappings);
  print_gauge(r, "process_max_mappings", NULL, "vm.max_map_count.", max_mappings());
  print_gauge(r, "resident_bytes", "bytes", "RSS: counts shared pages once for each mapping.", r->m.rss);
  print_gauge(r, "memory_bytes", "bytes", "PSS, swap and page tables.", memory_sum(&r->m));
  print_gauge(r, "saved_bytes", "bytes", "Memory that mapped pages save by sharing, now.", memory_saved(&r->m));
  for (size_t i = 0; i < FIGURES; i++) print_figure(r, &figures[i]);
  print_refused(r);
  print_histogram(r);
  print_class_family(r, "class_spans", "Spans of a size class that hold a live object.",
                     offsetof(struct mesh_uffd_class_stats, spans));
  print_class_family(r, "class_live_slots", "Live slots of a size class.",
                     offsetof(struct mesh_uffd_class_stats, live_slots));
  print_class_family(r, "class_meshed_slots", "Live slots of a size class in meshed spans.",
                     offsetof(struct mesh_uffd_class_stats, meshed_slots));
  printf("# EOF\n");
}

/* ---- the command ---------------------------------------------------------------------------------------------------
 */

static void print_report(const struct target *t, enum format format) {
  struct report r = {t, memory_of(t->pid, true)};
  format == TEXT ? print_text(&r) : format == JSON ? print_json(&r) : print_openmetrics(&r);
  finish_output(stdout, "standard output");
}

static int stat_run(int argc, char **argv) {
  static const struct option options[] = {
      {"json", no_argument, NULL, 'j'},           {"openmetrics", no_argument, NULL, 'o'},
      {"interval", required_argument, NULL, 'i'}, {"count", required_argument, NULL, 'n'},
      {"help", no_argument, NULL, 'h'},           {NULL, 0, NULL, 0}};
  enum format format = TEXT;
  struct looks looks = {0, 0};
  int c;
  while ((c = getopt_long(argc, argv, "joi:n:h", options, NULL)) >= 0) {
    if (c == 'j' || c == 'o') {
      if (format != TEXT) die_usage("stat", "--json and --openmetrics exclude each other");
      format = c == 'j' ? JSON : OPENMETRICS;
    } else if (!looks_option(&stat_command, c, optarg, &looks)) {
      return DONE;
    }
  }
  if (argc - optind != 1) die_usage("stat", "one process is needed");
  struct target t;
  target_open_or_die(&t, parse_pid("stat", argv[optind]));
  uint64_t count = looks.count ? looks.count : looks.interval_ms ? UINT64_MAX : 1;
  if (looks.interval_ms) catch_interrupts();
  for (uint64_t i = 1;; i++) {
    print_report(&t, format);
    if (i == count) break;
    sleep_ms(looks.interval_ms ? looks.interval_ms : 1000);
    if (interrupted) break;
    enum found found = target_read(&t);
    if (found == GONE) break; /* it was there: its end is no error */
    if (found != FOUND) {
      complain_of(&t, found);
      return (int)status_of(found);
    }
    if (format == TEXT) putchar('\n');
  }
  target_close(&t);
  return DONE;
}

const struct command stat_command = {
    "stat", "figures of a running process",
    "usage: mesh-uffd stat [--json | --openmetrics] [--interval SECONDS] [--count N] PID\n\n"
    "Shows what mesh-uffd does in a process. The process is neither stopped nor asked: its statistics page is read "
    "from\n"
    "outside, which takes the rights of a debugger.\n\n"
    "  -j, --json              one line of JSON\n"
    "  -o, --openmetrics       for Prometheus and its like\n"
    "  -i, --interval SECONDS  again and again, until the process ends\n"
    "  -n, --count N           N times (each second, if there is no --interval)\n"
    "  -h, --help              this text\n\n"
    "Exit status: 0 done; 1 failed; 2 wrong arguments; 3 no such process; 4 not permitted; 5 not under mesh-uffd, or "
    "no\n"
    "figures yet, as its heap is small.\n",
    stat_run};
