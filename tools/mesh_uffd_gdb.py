# SPDX-License-Identifier: Apache-2.0
"""The heap of a program under mesh-uffd, in gdb: of a process or of a core file. Needs the library's debugging symbols.

    (gdb) source mesh_uffd_gdb.py
    (gdb) mesh-uffd heap              figures, and a line for each size class
    (gdb) mesh-uffd spans [SIZE]      a line for each span (of the class of that size)
    (gdb) mesh-uffd validate          checks every invariant of a live process's heap; runs code in it
    (gdb) mesh-uffd pointer EXPR      what is known of an address: object, slot, span, state, who shares its page

A core file leaves out pages that a mesh file still holds, unless bit 2 of /proc/PID/coredump_filter is set (0x37). What
these commands show does not need them.
"""
import gdb


def word(type_, field, raw):
    """A field of a structure whose bytes were read; fields are found by name, so layouts may change."""
    at = type_[field].bitpos // 8
    return int.from_bytes(raw[at:at + type_[field].type.sizeof], "little")


def read(address, length):
    return bytes(gdb.selected_inferior().read_memory(address, length))


def fields(name):
    type_ = gdb.lookup_type(name)
    return type_, {f.name: f for f in type_.fields()}


class Heap:
    def __init__(self):
        try:
            arena = gdb.parse_and_eval("mu_arena")
        except gdb.error as e:
            raise gdb.GdbError(f"no mesh-uffd here, or no debugging symbols for it: {e}")
        self.base = int(arena["base"])
        self.pages = int(arena["limit"])
        self.shift = int(arena["page_shift"])
        if not self.base:
            raise gdb.GdbError("the heap is not in use")
        self.run_pages = int(gdb.parse_and_eval("MU_RUN_PAGES"))
        self.run_type, self.run = fields("struct mu_run")
        self.span_type, self.span = fields("struct mu_mini_heap")
        self.extent_type, self.extent = fields("struct mu_extent")
        self.runs_raw = read(int(arena["runs"]), self.pages // self.run_pages * self.run_type.sizeof)
        self.extents = int(arena["extents"])
        self.edges = next(f.bitpos // 8 for f in self.run_type.fields() if f.name == "edges")
        self.classes = gdb.parse_and_eval("mu_classes")
        self.heaps = gdb.parse_and_eval("mu_class_heaps")
        self.class_count = int(gdb.parse_and_eval("MU_CLASSES"))
        self.state_names = {f.enumval: f.name.replace("MU_", "").replace("SPAN_", "").replace("EXTENT_", "").lower()
                            for f in gdb.lookup_type("enum mu_state").fields()}
        self.shape = [{k: int(self.classes[c][k]) for k in ("size", "span_pages", "slots", "meta", "words")}
                      for c in range(self.class_count)]

    def run_record(self, number):
        size = self.run_type.sizeof
        raw = self.runs_raw[number * size:(number + 1) * size]
        return {k: word(self.run, k, raw) for k in ("spans", "in_use", "size_class", "meshed", "closed", "unit_log",
                                                    "live", "mappings", "thin")}

    def runs(self):
        for number in range(self.pages // self.run_pages):
            record = self.run_record(number)
            if record["in_use"]:
                yield number, record

    def spans_of(self, number, run):
        """Page, fields and bitmap of each span of a run."""
        shape = self.shape[run["size_class"]]
        count = self.run_pages // shape["span_pages"]
        index = (count + 7) // 8 * 8 if run["thin"] else 0  # see thin_table.h
        raw = read(run["spans"], index + (run["thin"] or count) * shape["meta"])
        for i in range(count):
            entry = raw[i] if index else i + 1
            if not entry:
                continue
            start = index + (entry - 1) * shape["meta"]
            part = raw[start:start + shape["meta"]]
            values = {k: word(self.span, k, part) for k in ("next", "prev", "state", "flags", "exempt", "live")}
            values["bitmap"] = int.from_bytes(part[self.span_type.sizeof:], "little")
            yield number * self.run_pages + i * shape["span_pages"], values

    def address(self, page):
        return self.base + (page << self.shift)

    def page_of(self, address):
        return (address - self.base) >> self.shift

    def extent_record(self, page):
        size, in_run = self.extent_type.sizeof, page % self.run_pages
        if in_run in (0, self.run_pages - 1):  # with the run's record
            start = page // self.run_pages * self.run_type.sizeof + self.edges + (size if in_run else 0)
            raw = self.runs_raw[start:start + size]
        else:
            raw = read(self.extents + page * size, size)
        return {k: word(self.extent, k, raw) for k in ("pages", "state")}

    def state(self, number):
        return self.state_names.get(number, str(number))

    def find_extent(self, page):
        """The extent that holds a page: its first page has the record. Pages in between may have none."""
        for first in range(page, max(page - (1 << 20), self.run_pages - 1), -1):
            if self.run_record(first // self.run_pages)["in_use"]:
                return None
            record = self.extent_record(first)
            if record["pages"] and self.state(record["state"]) != "tail":
                return (first, record) if first + record["pages"] > page else None
        return None


class Prefix(gdb.Command):
    """The heap of mesh-uffd: heap, spans, pointer."""

    def __init__(self):
        super().__init__("mesh-uffd", gdb.COMMAND_DATA, gdb.COMPLETE_NONE, True)


class ShowHeap(gdb.Command):
    """mesh-uffd heap: figures, and a line for each size class."""

    def __init__(self):
        super().__init__("mesh-uffd heap", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        h = Heap()
        engine = gdb.parse_and_eval("mu_engine")
        counters = gdb.parse_and_eval("mu_mesher_counters")
        why = engine["why"].string()
        print(f"heap at {h.base:#x}, {h.pages << h.shift >> 20} MiB accessible, pages of {1 << h.shift} bytes")
        print(f"tier {int(engine['tier'])}{f' ({why})' if why else ''}, {int(counters['passes'])} passes, "
              f"{int(counters['meshes'])} units meshed, {int(gdb.parse_and_eval('mu_mesh_mappings'))} mappings for meshing")
        large = int(gdb.parse_and_eval("mu_large_pages"))
        print(f"large objects: {large << h.shift >> 10} KiB")
        counts = {}
        for number, run in h.runs():
            for _, span in h.spans_of(number, run):
                line = counts.setdefault(run["size_class"], {"live": 0, "runs": set()})
                line["runs"].add(number)
                line["live"] += bin(span["bitmap"]).count("1")
                name = h.state(span["state"])
                line[name] = line.get(name, 0) + 1
        print("  size   runs    live slots      open    closed    meshed  (spans)")
        for c in sorted(counts):
            line = counts[c]
            print(f"{h.shape[c]['size']:6} {len(line['runs']):6} {line['live']:13} {line.get('open', 0):9} "
                  f"{line.get('closed', 0):9} {line.get('meshed', 0):9}")
            if line["live"] != int(h.heaps[c]["live_slots"]):
                print(f"       the class counts {int(h.heaps[c]['live_slots'])} live slots: a thread was at it, or "
                      "something is damaged")


class ShowSpans(gdb.Command):
    """mesh-uffd spans [SIZE]: a line for each span (of the class of that size)."""

    def __init__(self):
        super().__init__("mesh-uffd spans", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        h = Heap()
        size = int(gdb.parse_and_eval(argument)) if argument.strip() else None
        print("           address    size  state     live  of    place")
        for number, run in h.runs():
            shape = h.shape[run["size_class"]]
            if size is not None and shape["size"] != size:
                continue
            for page, span in h.spans_of(number, run):
                if not span["live"] and h.state(span["state"]) == "open":
                    continue
                place = f"file {span['next']} unit {span['prev']}" if h.state(span["state"]) == "meshed" else ""
                print(f"{h.address(page):#18x}  {shape['size']:6}  {h.state(span['state']):8} {span['live']:5}  "
                      f"{shape['slots']:<5} {place}")


class ShowPointer(gdb.Command):
    """mesh-uffd pointer EXPR: what is known of an address."""

    def __init__(self):
        super().__init__("mesh-uffd pointer", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        h = Heap()
        address = int(gdb.parse_and_eval(argument).cast(gdb.lookup_type("unsigned long")))
        page = h.page_of(address)
        if not 0 <= page < h.pages:
            print(f"{address:#x} is not in the heap ({h.base:#x} to {h.address(h.pages):#x})")
            return
        number = page // h.run_pages
        run = h.run_record(number)
        if run["in_use"]:
            self.small(h, address, page, number, run)
        else:
            self.large(h, address, page)

    def large(self, h, address, page):
        found = h.find_extent(page)
        if not found:
            print(f"{address:#x}: page {page} of the heap, never used, or within a large free range")
            return
        first, record = found
        state = h.state(record["state"])
        what = "a large object" if state == "large" else f"free memory ({state})"
        print(f"{address:#x}: in {what} of {record['pages']} pages at {h.address(first):#x}, offset "
              f"{address - h.address(first)}")

    def small(self, h, address, page, number, run):
        shape = h.shape[run["size_class"]]
        span_page = page - page % shape["span_pages"]
        span = dict(h.spans_of(number, run))[span_page]
        start = h.address(span_page)
        slot, offset = divmod(address - start, shape["size"])
        if slot >= shape["slots"]:
            print(f"{address:#x}: behind the last slot of the span at {start:#x}")
            return
        live = span["bitmap"] >> slot & 1
        print(f"{address:#x}: {f'byte {offset} of ' if offset else ''}an object of {shape['size']} bytes at "
              f"{start + slot * shape['size']:#x}")
        print("it is live, or free and in a thread's vector" if live else "it is free")
        print(f"slot {slot} of {shape['slots']} of the span at {start:#x}, {span['live']} of them live, state "
              f"{h.state(span['state'])}{', exempt from meshing' if span['exempt'] else ''}; run {number}"
              f"{', in a pass' if run['closed'] else ''}")
        if h.state(span["state"]) == "meshed":
            self.sharers(h, span_page, span, run)

    def sharers(self, h, page, span, run):
        """Other spans of the class that show the same packed unit."""
        shared = []
        for number, other in h.runs():
            if other["size_class"] != run["size_class"] or not other["meshed"]:
                continue
            unit_pages = 1 << other["unit_log"]
            for at, values in h.spans_of(number, other):
                same = (values["next"], values["prev"]) == (span["next"], span["prev"])
                if (h.state(values["state"]) == "meshed" and same and at != page
                        and at % unit_pages == page % unit_pages):
                    shared.append((at, values["live"]))
        print(f"its span shows unit {span['prev']} of mesh file {span['next']}, which {len(shared)} other spans show too")
        for at, live in shared[:16]:
            print(f"  {h.address(at):#x}, {live} live")
        if len(shared) > 16:
            print(f"  and {len(shared) - 16} more")


class Validate(gdb.Command):
    """mesh-uffd validate: check every invariant of the heap, by a call in the process. Aborts it on the first that fails."""

    def __init__(self):
        super().__init__("mesh-uffd validate", gdb.COMMAND_DATA)

    def invoke(self, _arg, _from_tty):
        print("the heap: " + gdb.parse_and_eval("((const char *(*)(void))mu_heap_validate_now)()").string())


Prefix()
Validate()
ShowHeap()
ShowSpans()
ShowPointer()
