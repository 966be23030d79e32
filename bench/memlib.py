# SPDX-License-Identifier: Apache-2.0
"""What the memory benchmarks share: allocators, starting programs, measuring their memory, charts, JSON.

Python's standard library only. Sizes are bytes, times are seconds.
"""
import argparse
import glob
import json
import math
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from xml.sax.saxutils import escape

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
OUT = os.path.join(HERE, "out")
MIB = 1 << 20
OURS = "mesh-uffd"
PEERS = ("glibc", "jemalloc", "mimalloc", "tcmalloc")
SAMPLE_HZ = 10
CHART_COLUMNS = 70

_FILES = {
    "glibc": ("libc.so.6",),
    "jemalloc": ("libjemalloc.so.2", "libjemalloc.so"),
    "mimalloc": ("libmimalloc.so.2", "libmimalloc.so.2.0", "libmimalloc.so"),
    "tcmalloc": ("libtcmalloc_minimal.so.4", "libtcmalloc_minimal.so"),
}


class Failure(Exception):
    """Something the benchmark cannot go on without; its text is for the user."""


# ---------------------------------------------------------------- allocators


def _library_directories():
    triplet = f"{platform.machine()}-linux-gnu"
    return [f"/usr/lib/{triplet}", f"/lib/{triplet}", "/usr/local/lib", "/usr/lib64", "/lib64", "/usr/lib", "/lib"]


def find_peer(name):
    """The path of a peer's library, or None when it is not installed."""
    for directory in _library_directories():
        for file in _FILES[name]:
            path = os.path.join(directory, file)
            if os.path.exists(path):
                return path
    return None


def find_ours(path=None):
    """The library to measure: `path`, or the newest one in the build trees next to this directory."""
    if path:
        if not os.path.isfile(path):
            raise Failure(f"no library at {path}")
        return os.path.abspath(path)
    found = []
    for pattern in (".libs", "build*/.libs", "build*"):
        found += glob.glob(os.path.join(TOP, pattern, "libmesh-uffd.so"))
    if not found:
        raise Failure("libmesh-uffd.so is in no build tree here: build it first, or say --lib PATH "
                      "(--lib none: peers only)")
    return max(found, key=os.path.getmtime)


class Allocator:
    """A name, the library to preload (None: the program's own), and what the environment gets besides."""

    def __init__(self, name, lib=None, env=None, label=None):
        self.name, self.lib, self.env, self.label = name, lib, dict(env or {}), label or name

    def environment(self):
        # The settings of the user's shell would make one allocator's run differ from the next; only ours keeps them.
        env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and (
            self.name == OURS or not re.match(r"(MALLOC|MIMALLOC|TCMALLOC|MESH)", k))}
        if self.lib:
            env["LD_PRELOAD"] = self.lib
        env.update(self.env)
        return env

    def version(self):
        if self.name == OURS:
            return _our_version(self.lib)
        return package_version(self.lib or find_peer("glibc"))


def package_version(path):
    """'package version' as dpkg knows the file, or the name of the file that the path leads to."""
    if not path:
        return "unknown"
    real = os.path.realpath(path)
    candidates = [real, real[4:]] if real.startswith("/usr/") else [real, "/usr" + real]
    for candidate in candidates:  # dpkg may know a file of a merged /usr by its old name
        try:
            owner = subprocess.run(["dpkg-query", "-S", candidate], capture_output=True, text=True)
            if owner.returncode == 0:
                package = owner.stdout.split(": ")[0].split(",")[0].strip()
                shown = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version}", package],
                                       capture_output=True, text=True)
                if shown.returncode == 0:
                    return shown.stdout
        except OSError:
            break
    return os.path.basename(real)


def _our_version(lib):
    code = ("import ctypes; f = ctypes.CDLL(None).mesh_uffd_version; f.restype = ctypes.c_char_p; "
            "print(f().decode())")
    env = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "MALLOCSTATS")}
    try:
        done = subprocess.run([sys.executable, "-c", code], env=dict(env, LD_PRELOAD=lib), capture_output=True,
                              text=True, timeout=20)
        if done.returncode == 0 and done.stdout.strip():
            return "mesh-uffd " + done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass
    return package_version(lib) + " (no mesh_uffd_version: not libmesh-uffd)"


def malloc_provider(argv, allocator):
    """The file that the program's malloc, free and realloc come from, as the dynamic linker binds them.

    argv must end at once (--version). A preload that the program does not really use makes a comparison worthless, so
    every run is checked, not believed. Returns a set of paths, empty when the linker does not tell.
    """
    program = os.path.basename(argv[0])
    with tempfile.TemporaryDirectory() as directory:
        log = os.path.join(directory, "bindings")
        env = dict(allocator.environment(), LD_DEBUG="bindings", LD_DEBUG_OUTPUT=log, LD_BIND_NOW="1")
        subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
        providers = set()
        for name in glob.glob(log + ".*"):
            with open(name, errors="replace") as file:
                for line in file:
                    m = re.search(r"binding file (\S+) \[\d+\] to (\S+) \[\d+\]: normal symbol `(malloc|free|realloc)'",
                                  line)
                    if m and (os.path.basename(m[1]) == program or "ruby" in os.path.basename(m[1])):
                        providers.add(m[2])
    return providers


def check_provider(argv, allocator, expected=None):
    """Raises Failure unless malloc comes from the library that was asked for. Returns the file it comes from."""
    providers = malloc_provider(argv, allocator)
    expected = expected or allocator.lib or find_peer("glibc")
    if not providers:
        raise Failure(f"{allocator.label}: cannot tell where malloc of {argv[0]} comes from")
    if {os.path.realpath(p) for p in providers} != {os.path.realpath(expected)}:
        raise Failure(f"{allocator.label}: malloc of {argv[0]} comes from {', '.join(sorted(providers))}, "
                      f"not from {expected}")
    return sorted(providers)[0]


# ---------------------------------------------------------------- measuring


def _read(path):
    with open(path, "rb") as file:
        return file.read()


def _fields(text, names):
    """Values in bytes of 'Name:  123 kB' lines."""
    values = dict.fromkeys(names, 0)
    for line in text.decode(errors="replace").splitlines():
        key, _, rest = line.partition(":")
        if key in values:
            values[key] = int(rest.split()[0]) * 1024
    return values


def _memfds(pid):
    """(device, inode) -> bytes of every memfd that any thread of the process has open or that is mapped.

    A thread may have a descriptor table of its own, so /proc/PID/fd alone would not show them all. One that is closed,
    but mapped, keeps its pages whether or not they are in the page tables; to see those takes CAP_CHECKPOINT_RESTORE.
    """
    found = {}
    base = f"/proc/{pid}/task"
    for task in os.listdir(base):
        try:
            names = os.listdir(f"{base}/{task}/fd")
        except OSError:
            continue
        for name in names:
            path = f"{base}/{task}/fd/{name}"
            try:
                if os.readlink(path).startswith("/memfd:"):
                    st = os.stat(path)
                    found[st.st_dev, st.st_ino] = st.st_blocks * 512
            except OSError:
                pass
    seen = set()
    for line in _read(f"/proc/{pid}/maps").splitlines():
        if b" /memfd:" not in line:
            continue
        span, _, _, device, inode, _ = line.split(maxsplit=5)
        if (device, inode) in seen:
            continue
        seen.add((device, inode))
        low, high = (int(x, 16) for x in span.split(b"-"))
        try:
            st = os.stat(f"/proc/{pid}/map_files/{low:x}-{high:x}")
            found[st.st_dev, st.st_ino] = st.st_blocks * 512
        except OSError:
            pass
    return found


def process_memory(pid):
    """One process's memory in bytes, as a dict; raises OSError when the process has ended.

    `own` is PSS + page tables + swap + the pages of its memfds that no mapping shows. Without the last term an
    allocator could hide memory in a file that it keeps open but has not mapped.
    """
    roll = _fields(_read(f"/proc/{pid}/smaps_rollup"), ("Rss", "Pss", "Pss_Shmem", "SwapPss"))
    pte = _fields(_read(f"/proc/{pid}/status"), ("VmPTE",))["VmPTE"]
    unmapped = max(0, sum(_memfds(pid).values()) - roll["Pss_Shmem"])
    return {"rss": roll["Rss"], "pss": roll["Pss"], "pte": pte, "swap": roll["SwapPss"], "memfd_unmapped": unmapped,
            "own": roll["Pss"] + pte + roll["SwapPss"] + unmapped}


def count_mappings(pid):
    return _read(f"/proc/{pid}/maps").count(b"\n")


class Group:
    """A memory cgroup of our own, for one run."""

    def __init__(self, parent, version):
        self.path = os.path.join(parent, f"mesh-uffd-bench-{os.getpid()}-{time.monotonic_ns()}")
        self.usage = "memory.usage_in_bytes" if version == 1 else "memory.current"
        self.version = version
        os.mkdir(self.path)
        try:
            int(_read(os.path.join(self.path, self.usage)))
        except (OSError, ValueError):
            self.remove()
            raise

    def join(self):
        """Moves the calling process in."""
        with open(os.path.join(self.path, "cgroup.procs"), "w") as file:
            file.write("0")

    def read(self):
        figures = {"cgroup": int(_read(os.path.join(self.path, self.usage)))}
        if self.version == 1:
            try:
                figures["cgroup_kmem"] = int(_read(os.path.join(self.path, "memory.kmem.usage_in_bytes")))
            except (OSError, ValueError):
                pass
        return figures

    def remove(self):
        for _ in range(50):
            try:
                os.rmdir(self.path)
                return
            except FileNotFoundError:
                return
            except OSError:  # the last process is still being torn down
                time.sleep(0.1)


class Measure:
    """How memory is measured here, chosen once; `text` says it to the reader.

    where: 'auto', 'none' (PSS), or the directory of a memory cgroup in which groups may be made. 'auto' makes groups
    only when this process is in the root group: any other group belongs to whoever made it (a container manager, a
    session), and moving a process out of it would take it out of their hands.
    """

    def __init__(self, where="auto"):
        self.parent = self.version = None
        reason = "not asked for"
        if where != "none":
            reason = self._choose(where)
        if self.parent:
            kmem = "user and kernel memory" if self.version == 1 else "user and kernel memory, memory.current"
            self.text = f"memory cgroup v{self.version} ({kmem}; includes page cache of files the program read first)"
            self.key, self.short = "cgroup", f"memory cgroup v{self.version}"
        else:
            self.text = ("PSS + page tables (VmPTE) + swap + unmapped pages of the process's memfds; "
                         f"no memory cgroup: {reason}")
            self.key, self.short = "own", "PSS + page tables + unmapped memfd pages"

    def _choose(self, where):
        if where == "auto":
            version, parent, reason = self._own_root()
            if not parent:
                return reason
        else:
            parent = where
            version = 1 if os.path.exists(os.path.join(parent, "memory.usage_in_bytes")) else 2
        try:
            if version == 2:
                control = os.path.join(parent, "cgroup.subtree_control")
                if b"memory" not in _read(control).split():
                    with open(control, "w") as file:
                        file.write("+memory")
            Group(parent, version).remove()
        except (OSError, ValueError) as error:
            if where != "auto":
                raise Failure(f"cannot make a memory cgroup in {parent}: {error}")
            return f"cannot make a group ({error.strerror if isinstance(error, OSError) else error})"
        self.parent, self.version = parent, version
        return ""

    @staticmethod
    def _own_root():
        mounts = {}
        for line in _read("/proc/self/mounts").decode().splitlines():
            device, directory, kind, options = line.split()[:4]
            if kind == "cgroup" and "memory" in options.split(","):
                mounts[1] = directory
            elif kind == "cgroup2":
                if "memory" in _read(os.path.join(directory, "cgroup.controllers")).decode().split():
                    mounts[2] = directory
        for line in _read("/proc/self/cgroup").decode().splitlines():
            _, controllers, path = line.split(":", 2)
            version = 1 if "memory" in controllers.split(",") else 2 if controllers == "" else 0
            if version in mounts:
                if path == "/":
                    return version, mounts[version], ""
                return version, None, "this process is in a group that somebody else manages (see --cgroup)"
        return 0, None, "no memory controller"

    def group(self):
        return Group(self.parent, self.version) if self.parent else None


class Program:
    """A program under one allocator, sampled from its start until stop()."""

    def __init__(self, argv, allocator, measure, **popen):
        self.measure, self.samples, self.mappings = measure, [], 0
        self.group = measure.group()
        self._stop = threading.Event()
        self.start = time.monotonic()
        try:
            self.popen = subprocess.Popen(argv, env=allocator.environment(),
                                          preexec_fn=self.group.join if self.group else None, **popen)
        except (OSError, subprocess.SubprocessError) as error:
            if self.group:
                self.group.remove()
            raise Failure(f"cannot start {argv[0]}: {error}")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def now(self):
        return time.monotonic() - self.start

    def sample(self):
        """One sample, or None once the process has ended. memory: the measure's figure."""
        try:
            figures = process_memory(self.popen.pid)
            if self.group:
                figures.update(self.group.read())
        except (OSError, IndexError, ValueError):
            return None
        if not figures["rss"]:
            return None
        figures["t"] = self.now()
        figures["memory"] = figures[self.measure.key]
        return figures

    def _run(self):
        """Samples SAMPLE_HZ times a second, less often where looking would take more than a twentieth of the time:
        while the kernel walks a large process for us, that process cannot change its mappings."""
        count = 0
        while not self._stop.is_set():
            began = time.monotonic()
            figures = self.sample()
            if figures is None and self.popen.poll() is not None:
                return
            if figures:
                self.samples.append(figures)
                if count % SAMPLE_HZ == 0:  # long to read when there are many mappings
                    try:
                        self.mappings = max(self.mappings, count_mappings(self.popen.pid))
                    except OSError:
                        pass
            count += 1
            now = time.monotonic()
            self._stop.wait(max(0.0, self.start + count / SAMPLE_HZ - now, 20 * (now - began)))

    def end_sampling(self):
        self._stop.set()
        self._thread.join()

    def stop(self, timeout=60):
        """Ends sampling and waits for the program; kills it when it does not end. Returns its exit status."""
        self.end_sampling()
        try:
            status = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            status = self.popen.wait()
        if self.group:
            self.group.remove()
        return status

    def at(self, t):
        """The sample next to the time t."""
        return min(self.samples, key=lambda s: abs(s["t"] - t)) if self.samples else None

    def peak(self):
        return max((s["memory"] for s in self.samples), default=0)


def mean_memory(samples):
    """Mean over time of the samples' memory."""
    if len(samples) < 2:
        return samples[0]["memory"] if samples else 0
    area = sum((a["memory"] + b["memory"]) / 2 * (b["t"] - a["t"]) for a, b in zip(samples, samples[1:]))
    return area / (samples[-1]["t"] - samples[0]["t"])


def run_marks(argv, allocator, measure, timeout=900, cwd=None):
    """Runs a program that says 'mark NAME key=value ...' and waits for a byte on its standard input after each.

    Returns (program, marks, status); each mark is a dict with name, the program's own figures, and the driver's sample
    taken while the program waits. Other lines are passed on to standard error.
    """
    program = Program(argv, allocator, measure, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
                      cwd=cwd)
    marks = []
    guard = threading.Timer(timeout, program.popen.kill)
    guard.start()
    try:
        for line in program.popen.stdout:
            words = line.split()
            if not words or words[0] != "mark":
                sys.stderr.write(line)
                continue
            mark = {"name": words[1]}
            for word in words[2:]:
                key, _, value = word.partition("=")
                mark[key] = float(value) if "." in value else int(value)
            mark["sample"] = program.sample()
            marks.append(mark)
            try:
                program.popen.stdin.write("\n")
                program.popen.stdin.flush()
            except OSError:
                break
    finally:
        guard.cancel()
        status = program.stop()
    if marks and marks[-1]["sample"]:  # how a process is torn down is not what is measured
        program.samples = [s for s in program.samples if s["t"] < marks[-1]["sample"]["t"]] + [marks[-1]["sample"]]
    return program, marks, status


# ---------------------------------------------------------------- options, machine, programs


def arguments(description, bench, peers_default="all"):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--lib", metavar="PATH", help="libmesh-uffd.so to measure; 'none': peers only; default: the "
                        "newest in the build trees (.libs, build*/.libs)")
    parser.add_argument("--peers", metavar="LIST", nargs="?", const="all", default=peers_default,
                        help="other allocators, comma-separated; 'all' or 'none'")
    parser.add_argument("--json", metavar="FILE", help="write every figure and sample here")
    parser.add_argument("--svg", metavar="FILE", default=os.path.join(OUT, bench + ".svg"),
                        help="line chart; 'none': no file")
    parser.add_argument("--cgroup", metavar="DIR", default="auto", help="memory cgroup in which groups may be made; "
                        "'none': measure PSS and page tables; 'auto': a cgroup when this process is in the root group")
    return parser


def allocators(options, known=PEERS, preload_glibc=False):
    """The allocators to run, in order, ours last; says which peers are missing. Raises Failure for a missing --lib."""
    wanted = {"all": list(known), "none": []}.get(options.peers)
    if wanted is None:
        wanted = [name.strip() for name in options.peers.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise Failure(f"no peer is named {name}; there are {', '.join(known)}")
    chosen = []
    for name in wanted:
        if name not in _FILES:
            continue
        path = find_peer(name)
        if path:
            chosen.append(Allocator(name, path if name != "glibc" or preload_glibc else None))
        else:
            print(f"{name}: library not found, left out", file=sys.stderr)
    if options.lib != "none":
        chosen.append(Allocator(OURS, find_ours(options.lib)))
    return chosen


def machine():
    facts = {"kernel": platform.release(), "arch": platform.machine(), "cpus": os.cpu_count(),
             "page_size": os.sysconf("SC_PAGE_SIZE"), "python": platform.python_version()}
    facts["memory"] = os.sysconf("SC_PHYS_PAGES") * facts["page_size"]
    try:
        facts["usable_cpus"] = len(os.sched_getaffinity(0))
        facts["cpu"] = re.search(r"model name\s*:\s*(.*)", _read("/proc/cpuinfo").decode())[1]
    except (OSError, TypeError):
        pass
    try:
        facts["thp"] = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled").decode())[1]
    except (OSError, TypeError):
        facts["thp"] = "none"
    try:
        facts["system"] = re.search(r'PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release").decode())[1]
    except (OSError, TypeError):
        pass
    return facts


def print_header(title, facts, measure, chosen):
    print(title)
    print(f"machine  {facts.get('system', 'Linux')}, kernel {facts['kernel']} {facts['arch']}, {facts['cpus']} CPUs "
          f"({facts.get('cpu', 'unknown')}), {facts['memory'] / (1 << 30):.1f} GiB, {facts['page_size']} B pages, "
          f"THP {facts['thp']}")
    print(f"measure  {measure.text}")
    for allocator in chosen:
        allocator.version_text = allocator.version()
        print(f"version  {allocator.label}: {allocator.version_text}")
    print(flush=True)


def compile_c(name, *libraries):
    """Builds bench/NAME.c into bench/out and returns the program's path."""
    source, target = os.path.join(HERE, name + ".c"), os.path.join(make_out(), name)
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if not compiler:
        raise Failure("no C compiler")
    command = compiler.split() + ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-pthread", "-fno-builtin-malloc",
                                  "-o", target, source, *libraries]
    if subprocess.run(command).returncode:
        raise Failure("cannot compile " + source)
    return target


def make_out():
    ignore = os.path.join(OUT, ".gitignore")
    try:
        os.makedirs(OUT, exist_ok=True)
        if not os.path.exists(ignore):
            with open(ignore, "w") as file:
                file.write("*\n")
    except OSError as error:
        raise Failure(f"cannot write to {OUT}: {error.strerror}")
    return OUT


def mib(value):
    return f"{value / MIB:.1f}"


def table(header, rows):
    """Text table: the first column to the left, the others to the right."""
    rows = [[str(c) for c in row] for row in rows]
    widths = [max(len(r[i]) for r in [header] + rows) for i in range(len(header))]
    for row in [header, ["-" * w for w in widths]] + rows:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip())
    print(flush=True)


def write_json(path, content):
    if path:
        directory = os.path.dirname(os.path.abspath(path))
        os.makedirs(directory, exist_ok=True)
        with open(path, "w") as file:
            json.dump(content, file, indent=1)
            file.write("\n")


def series_of(label, samples):
    return label, [(s["t"], s["memory"] / MIB) for s in samples]


def main(function):
    """Runs a driver; a Failure becomes one line and exit status 1."""
    try:
        sys.exit(function())
    except Failure as failure:
        print(f"{os.path.basename(sys.argv[0])}: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


# ---------------------------------------------------------------- charts


def _nice_step(span, count):
    raw = max(span, 1e-9) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    return next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)


def _ticks(top, count):
    step = _nice_step(top, count)
    return [i * step for i in range(int(top / step + 1e-9) + 1)], step


def _bins(points, end, columns):
    """Mean of the points in each of `columns` equal times; holes take the value before, after the end None."""
    sums = [[] for _ in range(columns)]
    for t, value in points:
        sums[min(columns - 1, int(t / end * columns))].append(value)
    last = max((i for i, s in enumerate(sums) if s), default=-1)
    values, previous = [], None
    for i, s in enumerate(sums):
        previous = statistics.fmean(s) if s else previous
        values.append(previous if i <= last else None)
    return values


def terminal_chart(series, unit="MiB", height=6):
    """One area chart per series, all on one scale, CHART_COLUMNS wide."""
    series = [(label, points) for label, points in series if points]
    if not series:
        return
    blocks = " ▁▂▃▄▅▆▇█"
    top = max(v for _, points in series for _, v in points) or 1
    end = max(points[-1][0] for _, points in series) or 1
    margin = 8
    columns = CHART_COLUMNS - margin
    for label, points in series:
        values = _bins(points, end, columns)
        print(f"{label}: last {points[-1][1]:.1f}, highest {max(v for _, v in points):.1f} {unit}")
        for row in range(height - 1, -1, -1):
            cells = ""
            for value in values:
                eighths = 0 if value is None else round(value / top * height * 8) - row * 8
                if row == 0 and value:
                    eighths = max(eighths, 1)
                cells += blocks[max(0, min(8, eighths))]
            tick = top if row == height - 1 else top / 2 if row == height // 2 - 1 else None
            print(f"{'' if tick is None else f'{tick:.0f}':>{margin - 2}} |{cells}".rstrip())
        left, right = "0 s", f"{end:.1f} s"
        print(" " * (margin - 2) + " +" + "-" * (columns - 1))
        print(" " * margin + left + right.rjust(columns - len(left)))
    print(flush=True)


_COLORS = {"glibc": "#7f7f7f", "jemalloc": "#1f77b4", "mimalloc": "#2ca02c", "tcmalloc": "#ff7f0e", OURS: "#d62728"}
_OTHERS = ("#1f77b4", "#9467bd", "#8c564b", "#17becf", "#bcbd22", "#e377c2")


def write_svg(path, title, series, subtitle="", y_label="memory, MiB", marks=()):
    """A line chart over time. series: (label, [(t, value)]); marks: (t, text), drawn as vertical lines."""
    series = [(label, points) for label, points in series if points]
    if path in (None, "none") or not series:
        return
    if os.path.dirname(os.path.abspath(path)) == OUT:
        make_out()
    else:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    width, height, left, right, top, bottom = 860, 480, 70, 190, 64, 56
    x_max = max(points[-1][0] for _, points in series) or 1
    y_ticks, step = _ticks(max(v for _, points in series for _, v in points) * 1.02 or 1, 6)
    y_max = y_ticks[-1] + step
    y_ticks.append(y_max)

    def x(t):
        return left + t / x_max * (width - left - right)

    def y(value):
        return height - bottom - value / y_max * (height - top - bottom)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
           'font-family="sans-serif" font-size="12">',
           f'<title>{escape(title)}</title>',
           f'<rect width="{width}" height="{height}" fill="white"/>',
           f'<text x="{left}" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
           f'<text x="{left}" y="44" font-size="11" fill="#555">{escape(subtitle)}</text>']
    for value in y_ticks:
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#333">{value:g}</text>')
    for t in _ticks(x_max, 8)[0]:
        out.append(f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{height - bottom}" y2="{height - bottom + 5}" '
                   'stroke="#333"/>')
        out.append(f'<text x="{x(t):.1f}" y="{height - bottom + 19}" text-anchor="middle" fill="#333">{t:g}</text>')
    out.append(f'<line x1="{left}" x2="{width - right}" y1="{height - bottom}" y2="{height - bottom}" stroke="#333"/>')
    out.append(f'<line x1="{left}" x2="{left}" y1="{top}" y2="{height - bottom}" stroke="#333"/>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 16}" text-anchor="middle">time, s</text>')
    out.append(f'<text transform="translate(18 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">'
               f'{escape(y_label)}</text>')
    for t, text in marks:
        out.append(f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{top}" y2="{height - bottom}" stroke="#999" '
                   'stroke-dasharray="3 4"/>')
        out.append(f'<text x="{x(t) + 4:.1f}" y="{top + 10}" fill="#777" font-size="11">{escape(text)}</text>')
    others = iter(_OTHERS * 4)
    for i, (label, points) in enumerate(series):
        color = _COLORS.get(label) or next(others)
        weight = 2.6 if label.startswith(OURS) else 1.6
        line = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in points)
        out.append(f'<polyline fill="none" stroke="{color}" stroke-width="{weight}" stroke-linejoin="round" '
                   f'points="{line}"/>')
        ly = top + 10 + i * 36
        out.append(f'<line x1="{width - right + 14}" x2="{width - right + 38}" y1="{ly}" y2="{ly}" stroke="{color}" '
                   f'stroke-width="{weight}"/>')
        out.append(f'<text x="{width - right + 44}" y="{ly + 4}">{escape(label)}</text>')
        out.append(f'<text x="{width - right + 44}" y="{ly + 19}" fill="#777" font-size="11">'
                   f'at the end {points[-1][1]:.0f}</text>')
    out.append("</svg>\n")
    with open(path, "w") as file:
        file.write("\n".join(out))
    print(f"chart    {os.path.relpath(path)}")
