/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/target.h"
#include <dirent.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* ---- the screen ----------------------------------------------------------------------------------------------------
 */

enum { MAX_ROWS = 200, MAX_COLUMNS = 400, GRAPH_ROWS = 7 };

/* Text for one screen; what does not fit is left out. */
static struct {
  char lines[MAX_ROWS][MAX_COLUMNS + 1];
  int rows, columns, used;
  bool terminal;
  struct termios before;
} screen;

static void restore_terminal(void) {
  if (!screen.terminal) return;
  tcsetattr(STDIN_FILENO, TCSANOW, &screen.before);
  fputs("\033[?25h\033[?1049l", stdout);
  fflush(stdout);
}

/* Keys at once and unseen; another screen, so that the shell's comes back. */
static void take_terminal(void) {
  struct termios raw;
  if (tcgetattr(STDIN_FILENO, &screen.before) < 0) return;
  screen.terminal = true;
  raw = screen.before;
  raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
  raw.c_cc[VMIN] = 0;
  raw.c_cc[VTIME] = 0;
  tcsetattr(STDIN_FILENO, TCSANOW, &raw);
  atexit(restore_terminal);
  fputs("\033[?1049h\033[?25l", stdout);
}

static void begin_screen(void) {
  struct winsize size = {.ws_row = 24, .ws_col = 80};
  if (screen.terminal) ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
  screen.rows = size.ws_row > 0 && size.ws_row < MAX_ROWS ? size.ws_row : 24;
  screen.columns = size.ws_col > 0 && size.ws_col < MAX_COLUMNS ? size.ws_col : 80;
  screen.used = 0;
}

__attribute__((format(printf, 1, 2))) static void put(const char *format, ...) {
  va_list args;
  if (screen.used >= screen.rows) return;
  va_start(args, format);
  vsnprintf(screen.lines[screen.used++], (size_t)screen.columns + 1, format, args);
  va_end(args);
}

static void show_screen(void) {
  if (screen.terminal) fputs("\033[H", stdout);
  for (int i = 0; i < screen.used; i++)
    printf("%s%s%s", screen.lines[i], screen.terminal ? "\033[K" : "",
           screen.terminal && i == screen.rows - 1 ? "" : "\n");
  if (screen.terminal && screen.used < screen.rows) fputs("\033[J", stdout);
  finish_output(stdout, "standard output");
}

/* Waits; true when the user wants to leave. */
static bool wait_for_key(uint64_t ms) {
  uint64_t end = now_ns() + ms * 1000000;
  struct pollfd keys = {.fd = STDIN_FILENO, .events = POLLIN};
  do {
    uint64_t now = now_ns();
    char key;
    int left = now < end ? (int)((end - now) / 1000000) : 0;
    if (!screen.terminal)
      sleep_ms((uint64_t)left);
    else if (poll(&keys, 1, left) > 0 && read(STDIN_FILENO, &key, 1) <= 0)
      return true;
    else if (keys.revents && (key == 'q' || key == 'Q' || key == 27))
      return true;
    keys.revents = 0;
  } while (!interrupted && now_ns() + 1000000 < end);
  return interrupted;
}

/* ---- one process ---------------------------------------------------------------------------------------------------
 */

enum { HISTORY = 512 };

/* Memory as seen by this command; halved in resolution when full. */
static struct {
  double mib[HISTORY], live[HISTORY];
  size_t used;
  unsigned stride, skipped;
  double peak;
} history = {.stride = 1};

static void remember(double memory, double live) {
  if (memory > history.peak) history.peak = memory;
  if (++history.skipped < history.stride && history.used) return;
  history.skipped = 0;
  if (history.used == HISTORY) {
    for (size_t i = 0; i < HISTORY / 2; i++) {
      history.mib[i] = history.mib[2 * i];
      history.live[i] = history.live[2 * i];
    }
    history.used /= 2;
    history.stride *= 2;
  }
  history.mib[history.used] = memory;
  history.live[history.used++] = live;
}

/* '#' memory, ':' live within it. */
static void put_graph(void) {
  char line[MAX_COLUMNS + 1];
  size_t width = (size_t)screen.columns - 11, shown = history.used < width ? history.used : width;
  double top = history.peak > 0 ? history.peak : 1;
  for (int row = GRAPH_ROWS; row > 0; row--) {
    double level = top * (row - 0.5) / GRAPH_ROWS;
    for (size_t x = 0; x < shown; x++) {
      size_t i = shown < width ? x : x * history.used / width;
      line[x] = history.live[i] >= level ? ':' : history.mib[i] >= level ? '#' : ' ';
    }
    line[shown] = 0;
    if (row == GRAPH_ROWS || row == (GRAPH_ROWS + 1) / 2)
      put("%8.1f |%s", top * row / GRAPH_ROWS, line);
    else
      put("         |%s", line);
  }
}

static void latency_text(uint64_t ns, char out[16]) {
  if (ns == UINT64_MAX)
    snprintf(out, 16, "longer");
  else if (ns < 1000000)
    snprintf(out, 16, "%.0f us", (double)ns / 1e3);
  else
    snprintf(out, 16, "%.1f ms", (double)ns / 1e6);
}

static void put_faults(const struct mesh_uffd_stats_page *p) {
  char half[16], most[16], longest[16];
  if (!p->totals.faults) {
    put("faults   0");
    return;
  }
  latency_text(latency_quantile(p, 0.5), half);
  latency_text(latency_quantile(p, 0.99), most);
  latency_text(p->totals.longest_fault_ns, longest);
  put("faults   %" PRIu64 "; half under %s, 99 %% under %s, longest %s", p->totals.faults, half, most, longest);
}

static int by_free_bytes(const void *a, const void *b) {
  uint64_t x = class_free_bytes(a), y = class_free_bytes(b);
  return x < y ? 1 : x > y ? -1 : 0;
}

/* Those with the most to gain first. */
static void put_classes(const struct mesh_uffd_stats_page *p) {
  struct mesh_uffd_class_stats rows[MESH_UFFD_STATS_CLASSES];
  size_t n = p->classes < MESH_UFFD_STATS_CLASSES ? p->classes : MESH_UFFD_STATS_CLASSES;
  memcpy(rows, p->class_rows, n * sizeof *rows);
  qsort(rows, n, sizeof *rows, by_free_bytes);
  put("    size      spans       live  live %%  free MiB  meshed %%");
  for (size_t i = 0; i < n && screen.used < screen.rows - screen.terminal; i++) {
    const struct mesh_uffd_class_stats *c = &rows[i];
    if (!c->spans) continue;
    put("%8u %10" PRIu64 " %10" PRIu64 "  %6.1f  %8.1f  %8.1f", c->size, c->spans, c->live_slots,
        100 * (double)c->live_slots / (double)(c->spans * c->slots), mib(class_free_bytes(c)),
        c->live_slots ? 100 * (double)c->meshed_slots / (double)c->live_slots : 0);
  }
}

static void put_process(const struct target *t) {
  const struct mesh_uffd_stats_page *p = &t->page;
  const struct mesh_uffd_stats *s = &p->totals;
  struct memory m = memory_of(t->pid, true);
  double now = mib(memory_sum(&m));
  char clock[16];
  time_t seconds = time(NULL);
  strftime(clock, sizeof clock, "%H:%M:%S", localtime(&seconds));
  remember(now, mib(s->live_bytes));
  put("%d %s   tier %u %s%s   %s%s", t->pid, t->name, s->tier, tier_name(s->tier), p->meshing ? "" : ", meshing off",
      clock, screen.terminal ? "   q: quit" : "");
  put("MiB      %.1f%s   peak %.1f   live %.1f   saved %.1f   unused %.1f   RSS %.1f", now, m.pss ? "" : " (RSS)",
      history.peak, mib(s->live_bytes), mib(memory_saved(&m)), mib(p->unused_bytes), mib(m.rss));
  put_graph();
  put("mappings %" PRIu64 " of %" PRIu64 "; %" PRIu64 " for meshing, budget %" PRIu64, m.mappings, max_mappings(),
      s->mappings, p->mapping_budget);
  put("passes   %" PRIu64 ", longest %.1f us; given back %.1f MiB by meshing, %.1f unused", s->passes,
      (double)s->longest_pass_ns / 1e3, mib(s->freed_bytes), mib(s->reclaimed_bytes));
  put_faults(p);
  put("refused  %" PRIu64 " pages; units: %" PRIu64 " busy %" PRIu64 " exempt %" PRIu64 " overlap %" PRIu64
      " shared %" PRIu64 " no mapping",
      s->refused, p->refused_busy, p->refused_exempt, p->refused_overlap, p->refused_shared, p->refused_mappings);
  put_classes(p);
}

/* ---- all processes -------------------------------------------------------------------------------------------------
 */

static void put_all(void) {
  DIR *all = opendir("/proc");
  struct dirent *entry;
  unsigned refused = 0, shown = 0;
  put("    PID  tier    MiB   live  saved    RSS  passes  faults  mappings  name%s",
      screen.terminal ? "   q: quit" : "");
  while (all && (entry = readdir(all))) {
    uint64_t pid;
    struct target t;
    if (!parse_number(entry->d_name, 1, INT32_MAX, &pid) || (int)pid == getpid()) continue;
    enum found found = target_open(&t, (int)pid);
    if (found == FORBIDDEN) refused++;
    if (found == FOUND) {
      struct memory m = memory_of(t.pid, false);
      const struct mesh_uffd_stats *s = &t.page.totals;
      shown++;
      put("%7d  %4u %6.0f %6.0f %6.0f %6.0f %7" PRIu64 " %7" PRIu64 "  %8" PRIu64 "  %s", t.pid, s->tier,
          mib(memory_sum(&m)), mib(s->live_bytes), mib(memory_saved(&m)), mib(m.rss), s->passes, s->faults, s->mappings,
          t.name);
    }
    target_close(&t);
  }
  if (all) closedir(all);
  if (!shown) put("no process with figures%s", refused ? " that this user may read" : "");
  if (refused) put("(%u processes may not be read by this user)", refused);
}

/* Whether lines can be written over: the sequences for it are the same everywhere else. */
static bool can_go_back(void) {
  const char *kind = getenv("TERM");
  return kind && *kind && strcmp(kind, "dumb") != 0;
}

static int top_run(int argc, char **argv) {
  static const struct option options[] = {{"batch", no_argument, NULL, 'b'},
                                          {"count", required_argument, NULL, 'n'},
                                          {"interval", required_argument, NULL, 'i'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
  struct looks looks = {1000, UINT64_MAX};
  bool batch = false;
  int c, pid = 0;
  while ((c = getopt_long(argc, argv, "bn:i:d:h", options, NULL)) >= 0) {
    if (c == 'b')
      batch = true;
    else if (!looks_option(&top_command, c == 'd' ? 'i' : c, optarg, &looks)) /* -d: as in top(1) */
      return DONE;
  }
  if (argc - optind > 1) die_usage("top", "at most one process");
  if (optind < argc) pid = parse_pid("top", argv[optind]);
  struct target t;
  if (pid) target_open_or_die(&t, pid);
  if (!batch && !(isatty(STDIN_FILENO) && isatty(STDOUT_FILENO))) die(FAILED, "top: this is no terminal; see --batch");
  if (!can_go_back()) batch = true;
  catch_interrupts();
  if (!batch) take_terminal();
  enum found found = FOUND;
  for (uint64_t i = 0; i < looks.count && !interrupted; i++) {
    begin_screen();
    pid ? put_process(&t) : put_all();
    show_screen();
    if (i + 1 == looks.count || wait_for_key(looks.interval_ms)) break;
    if (pid && (found = target_read(&t)) != FOUND) break;
    if (batch) putchar('\n');
  }
  restore_terminal();
  screen.terminal = false;
  if (pid) target_close(&t);
  if (found == GONE) complain("process %d (%s) has ended", t.pid, t.name);
  return DONE;
}

const struct command top_command = {
    "top", "live view of one process, or of all",
    "usage: mesh-uffd top [--interval SECONDS] [--count N] [--batch] [PID]\n\n"
    "Shows one process, with its memory over time (# memory, : live objects) and its size classes, those with most "
    "free\n"
    "memory first; or all processes under mesh-uffd that this user may read, a line each.\n\n"
    "  -i, --interval SECONDS  between two looks (1)\n"
    "  -n, --count N           ends after N looks\n"
    "  -b, --batch             plain lines, no terminal needed; so on one that is dumb (TERM)\n"
    "  -h, --help              this text\n\n"
    "Exit status: 0 done; 2 wrong arguments; 3 no such process; 4 not permitted; 5 no figures.\n",
    top_run};
