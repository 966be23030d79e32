/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/options.h"
#include "cmd/program.h"
#include "cmd/target.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct moment {
  double seconds, mib, live;
  uint64_t passes;
};

/* One run of the program. */
struct run {
  struct moment *moments;
  size_t used, room;
  int status; /* of waitpid */
};

/* ---- recording -----------------------------------------------------------------------------------------------------
 */

static void note(struct run *r, struct moment m) {
  if (r->used == r->room) {
    r->room = r->room ? r->room * 2 : 1024;
    r->moments = realloc(r->moments, r->room * sizeof *r->moments);
    if (!r->moments) die(FAILED, "no memory");
  }
  r->moments[r->used++] = m;
}

/* The library is not there at first, nor are figures. */
static void look(struct target *t, bool *opened, int pid) {
  if (*opened && target_read(t) == FOUND) return;
  if (*opened) target_close(t);
  enum found found = target_open(t, pid);
  *opened = found == FOUND || found == NOTHING_YET;
  if (!*opened) target_close(t);
  if (found != FOUND) memset(&t->page, 0, sizeof t->page);
}

static void take_moment(struct run *r, struct target *t, bool *opened, int pid, uint64_t began) {
  look(t, opened, pid);
  struct memory m = memory_of(pid, false);
  if (!m.rss) return; /* between fork and exec, or at its end */
  note(r, (struct moment){(double)(now_ns() - began) / 1e9, mib(memory_sum(&m)), mib(t->page.totals.live_bytes),
                          t->page.totals.passes});
}

static void start(const char *path, char **argv, const sigset_t *before) {
  sigprocmask(SIG_SETMASK, before, NULL);
  execv(path, argv);
  complain("%s: %s", path, strerror(errno));
  _exit(errno == ENOENT ? NOT_FOUND : CANNOT_RUN);
}

/* Runs the program and looks at it until it ends. Signals that ask us to end are passed on. */
static void record(struct run *r, const char *path, char **argv, uint64_t interval, bool progress) {
  struct target t = {.pidfd = -1};
  bool opened = false;
  sigset_t signals, before;
  sigemptyset(&signals);
  sigaddset(&signals, SIGCHLD);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGHUP);
  sigprocmask(SIG_BLOCK, &signals, &before);
  uint64_t began = now_ns(), next = began, said = began;
  fflush(NULL);
  pid_t pid = fork();
  if (pid < 0) die(FAILED, "fork: %s", strerror(errno));
  if (pid == 0) start(path, argv, &before);
  for (;;) {
    pid_t ended = waitpid(pid, &r->status, WNOHANG);
    if (ended == pid || (ended < 0 && errno != EINTR)) break;
    take_moment(r, &t, &opened, pid, began);
    if (progress && now_ns() - said >= 1000000000) {
      said = now_ns();
      const struct moment *m = r->used ? &r->moments[r->used - 1] : NULL;
      complain("%.0f s, %.1f MiB, %" PRIu64 " passes", (double)(said - began) / 1e9, m ? m->mib : 0, m ? m->passes : 0);
    }
    next += interval * 1000000;
    uint64_t now = now_ns(), left = next > now ? next - now : 1000000;
    if (next < now) next = now;
    struct timespec wait = {.tv_sec = (time_t)(left / 1000000000), .tv_nsec = (long)(left % 1000000000)};
    int signal = sigtimedwait(&signals, NULL, &wait);
    if (signal == SIGTERM || signal == SIGHUP) kill(pid, signal); /* a terminal's SIGINT reaches both */
  }
  sigprocmask(SIG_SETMASK, &before, NULL);
  if (opened) target_close(&t);
}

/* ---- output --------------------------------------------------------------------------------------------------------
 */

enum { WIDTH = 960, HEIGHT = 420, LEFT = 64, RIGHT = 16, TOP = 56, BOTTOM = 48 };

static void write_csv(FILE *to, const struct run *runs, unsigned count) {
  fprintf(to, "meshing,seconds,memory_mib,live_mib,passes\n");
  for (unsigned k = 0; k < count; k++)
    for (size_t i = 0; i < runs[k].used; i++) {
      const struct moment *m = &runs[k].moments[i];
      fprintf(to, "%d,%.3f,%.3f,%.3f,%" PRIu64 "\n", k == count - 1, m->seconds, m->mib, m->live, m->passes);
    }
}

struct scale {
  double seconds, mib;
};

static double x_of(const struct scale *s, double seconds) {
  return LEFT + seconds / s->seconds * (WIDTH - LEFT - RIGHT);
}
static double y_of(const struct scale *s, double mib) {
  return HEIGHT - BOTTOM - mib / s->mib * (HEIGHT - TOP - BOTTOM);
}

/* The next of 1, 2, 5, 10 ... that makes at most `steps` of it. */
static double step_for(double all, int steps) {
  double step = 0.001;
  for (int i = 0; all / step > steps; i++) step *= i % 3 == 1 ? 2.5 : 2;
  return step;
}

static void write_axes(FILE *to, const struct scale *s) {
  double dx = step_for(s->seconds, 10), dy = step_for(s->mib, 6);
  for (int i = 0; i * dy <= s->mib; i++)
    fprintf(to, "<path stroke=\"#ddd\" d=\"M%d %.1fH%d\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
            LEFT, y_of(s, i * dy), WIDTH - RIGHT, LEFT - 6, y_of(s, i * dy) + 4, i * dy);
  for (int i = 0; i * dx <= s->seconds; i++)
    fprintf(to, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n", x_of(s, i * dx), HEIGHT - BOTTOM + 30,
            i * dx);
  fprintf(to, "<text x=\"%d\" y=\"%d\">MiB over seconds</text>\n", 8, TOP - 12);
}

static void write_line(FILE *to, const struct scale *s, const struct run *r, const char *colour, bool live) {
  fprintf(to, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\"%s points=\"", colour,
          live ? " stroke-dasharray=\"4 3\"" : "");
  for (size_t i = 0; i < r->used; i++) {
    const struct moment *m = &r->moments[i];
    if (!live || m->live > 0) fprintf(to, "%.1f,%.1f ", x_of(s, m->seconds), y_of(s, live ? m->live : m->mib));
  }
  fprintf(to, "\"/>\n");
}

/* Below the time axis, where passes were made. */
static void write_passes(FILE *to, const struct scale *s, const struct run *r) {
  fprintf(to, "<path stroke=\"#08519c\" d=\"");
  for (size_t i = 1; i < r->used; i++)
    if (r->moments[i].passes != r->moments[i - 1].passes)
      fprintf(to, "M%.1f %dv8", x_of(s, r->moments[i].seconds), HEIGHT - BOTTOM + 4);
  fprintf(to, "\"/>\n");
}

static double last_mib(const struct run *r) {
  return r->used ? r->moments[r->used - 1].mib : 0;
}

static double peak_mib(const struct run *r) {
  double peak = 0;
  for (size_t i = 0; i < r->used; i++)
    if (r->moments[i].mib > peak) peak = r->moments[i].mib;
  return peak;
}

static void write_svg(FILE *to, const struct run *runs, unsigned count, const char *name) {
  const struct run *with = &runs[count - 1];
  struct scale s = {0.1, 1};
  for (unsigned k = 0; k < count; k++) {
    if (runs[k].used && runs[k].moments[runs[k].used - 1].seconds > s.seconds)
      s.seconds = runs[k].moments[runs[k].used - 1].seconds;
    if (peak_mib(&runs[k]) * 1.05 > s.mib) s.mib = peak_mib(&runs[k]) * 1.05;
  }
  fprintf(to,
          "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" "
          "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n<text x=\"8\" y=\"22\" "
          "font-size=\"16\">",
          WIDTH, HEIGHT);
  for (const char *c = name; *c; c++) *c == '<' || *c == '&' ? fprintf(to, "&#%d;", *c) : fputc(*c, to);
  fprintf(to, ": peak %.1f MiB, at the end %.1f MiB", peak_mib(with), last_mib(with));
  if (count > 1) fprintf(to, "; without meshing %.1f and %.1f", peak_mib(&runs[0]), last_mib(&runs[0]));
  fprintf(to,
          "</text>\n<text x=\"%d\" y=\"%d\" text-anchor=\"end\">line: memory (PSS, swap, page tables)%s; dashes: "
          "live; marks below: passes</text>\n",
          WIDTH - RIGHT, TOP - 12, count > 1 ? ", grey without meshing" : "");
  write_axes(to, &s);
  if (count > 1) write_line(to, &s, &runs[0], "#999", false);
  write_line(to, &s, with, "#08519c", false);
  write_line(to, &s, with, "#1a6837", true);
  write_passes(to, &s, with);
  fprintf(to, "</svg>\n");
}

static bool ends_with(const char *name, const char *end) {
  size_t n = strlen(name), k = strlen(end);
  return n > k && strcmp(name + n - k, end) == 0;
}

/* ---- the command ---------------------------------------------------------------------------------------------------
 */

static int exit_status(int status) {
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int record_run(int argc, char **argv) {
  static const struct option options[] = {LIBRARY_OPTIONS_LIST,
                                          {"output", required_argument, NULL, 'o'},
                                          {"interval", required_argument, NULL, 'i'},
                                          {"compare", no_argument, NULL, 'c'},
                                          {"progress", no_argument, NULL, 'p'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
  struct library_options o = {NULL, false, false};
  struct run runs[2] = {{0}, {0}};
  const char *output = NULL;
  uint64_t interval = 100;
  bool compare = false, progress = false;
  char path[4096];
  int c;
  while ((c = getopt_long(argc, argv, "+o:i:cpqh", options, NULL)) >= 0) switch (c) {
    case 'o':
      output = optarg;
      break;
    case 'i':
      if (!parse_seconds(optarg, &interval)) die_usage("record", "'%s' is not 0.01 to 86400 seconds", optarg);
      break;
    case 'c':
      compare = true;
      break;
    case 'p':
      progress = true;
      break;
    case 'h':
      fputs(record_command.help, stdout);
      return DONE;
    default:
      if (!library_option("record", c, optarg, &o)) die_usage("record", "wrong option");
    }
  if (!output) die_usage("record", "--output is needed");
  if (!ends_with(output, ".svg") && !ends_with(output, ".csv")) die_usage("record", "--output: name a .svg or a .csv");
  if (optind == argc) die_usage("record", "a program is needed");
  if (isatty(STDERR_FILENO) && !o.quiet) progress = true;
  FILE *to = fopen(output, "we");
  if (!to) die(FAILED, "%s: %s", output, strerror(errno));
  const char *mesh = getenv("MESH_UFFD_MESH");
  char *as_asked = mesh ? strdup(mesh) : NULL;
  library_prepare(&o, argv[optind], path);
  unsigned count = 0;
  if (compare) {
    setenv("MESH_UFFD_MESH", "0", 1);
    record(&runs[count++], path, argv + optind, interval, progress);
    as_asked ? setenv("MESH_UFFD_MESH", as_asked, 1) : unsetenv("MESH_UFFD_MESH");
  }
  free(as_asked);
  record(&runs[count++], path, argv + optind, interval, progress);
  ends_with(output, ".svg") ? write_svg(to, runs, count, argv[optind]) : write_csv(to, runs, count);
  finish_output(to, output);
  if (fclose(to) != 0) die(FAILED, "%s: %s", output, strerror(errno));
  int status = exit_status(runs[count - 1].status);
  for (unsigned k = 0; k < count; k++) free(runs[k].moments);
  return status;
}

const struct command record_command = {
    "record", "memory of a program over time, as a picture",
    "usage: mesh-uffd record --output FILE [OPTION...] [--] PROGRAM [ARGUMENT...]\n\n"
    "Runs a program under mesh-uffd, as 'mesh-uffd run' does, and draws its memory over time, with the passes marked. "
    "Of\n"
    "the program's children nothing is recorded.\n\n"
    "  -o, --output FILE       FILE.svg or FILE.csv\n"
    "  -i, --interval SECONDS  between two looks (0.1)\n"
    "  -c, --compare           runs it twice, first without meshing, and draws both\n"
    "  -p, --progress          says each second on standard error how far it is; so it does\n"
    "                          on a terminal, but for --quiet\n" LIBRARY_OPTIONS_HELP
    "  -h, --help              this text\n\n"
    "Exit status: that of the program (128 + the signal that ended it); 1 failed; 2 wrong arguments; 126 the program\n"
    "cannot be run; 127 it is not found.\n",
    record_run};
