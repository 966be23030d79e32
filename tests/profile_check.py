#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Reads a heap profile (profile.proto, in gzip) and compares it with what tests/profiled.c said that it did.

profile_check.py INTERVAL OUTPUT PROFILE: every place that allocates must be estimated within its sampling error.
profile_check.py --held INTERVAL OUTPUT DIRECTORY: what survivors hold, before meshing, meshed, written to again.
profile_check.py --exact OUTPUT PROFILE: the totals, where every object is a sample but little can be kept.
"""
import gzip
import math
import os
import sys

TYPES = ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space", "held_space"]
SIGMAS = 6  # one run in 10^9 fails by chance


class Wrong(Exception):
    pass


def must(condition, text):
    if not condition:
        raise Wrong(text)


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data):
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7 == 0:
            value, at = varint(data, at)
        else:
            must(tag & 7 == 2, f"wire type {tag & 7}")
            length, at = varint(data, at)
            must(at + length <= len(data), "a field is longer than what it is in")
            value, at = data[at:at + length], at + length
        yield tag >> 3, value


def packed(data):
    at, values = 0, []
    while at < len(data):
        value, at = varint(data, at)
        values.append(value)
    return values


class Profile:
    def __init__(self, path):
        data = gzip.open(path).read()  # checks the CRC and the length
        top = list(fields(data))
        self.strings = [v.decode() for f, v in top if f == 6]
        must(self.strings[0] == "", "the first string is not empty")
        types = [dict(fields(v)) for f, v in top if f == 1]
        must([self.strings[t[1]] for t in types] == TYPES, "sample types")
        must([self.strings[t[2]] for t in types] == ["count", "bytes", "count", "bytes", "bytes"], "units")
        self.mappings = {m[1]: m for m in (dict(fields(v)) for f, v in top if f == 3)}
        self.locations = {}
        for f, v in top:
            if f == 4:
                location = dict(fields(v))
                must(location[1] not in self.locations and location[1] > 0, "a location's number is there twice")
                must(location.get(2, 0) == 0 or location[2] in self.mappings, "a mapping that is not there")
                self.locations[location[1]] = location
        self.samples = []
        for f, v in top:
            if f == 2:
                sample = dict(fields(v))
                places, values = packed(sample[1]), packed(sample[2])
                must(len(values) == len(TYPES), "so many values")
                must(places and all(p in self.locations for p in places), "a location that is not there")
                self.samples.append((tuple(self.locations[p].get(3, 0) for p in places), dict(zip(TYPES, values))))
        must(len({s for s, _ in self.samples}) == len(self.samples), "a stack is there twice")
        self.period = [v for f, v in top if f == 12][0]
        self.comment = self.strings[[v for f, v in top if f == 13][0]]
        must(self.strings[[v for f, v in top if f == 14][0]] == "inuse_space", "the default type")
        main = self.mappings[1]
        must(os.path.basename(self.strings[main[5]]).startswith("profiled"), "the program is not the first mapping")
        must(len(self.strings[main[6]]) >= 16, "the program has no build id")
        self.main = main

    def by_function(self, functions):
        """Figures of each of the functions: (name, address) by address; the innermost that is known counts."""
        sums = {}
        for stack, values in self.samples:
            name = next((n for n in (self.name(a, functions) for a in stack) if n), "?")
            total = sums.setdefault(name, dict.fromkeys(TYPES, 0))
            for t in TYPES:
                total[t] += values[t]
        return sums

    def name(self, address, functions):
        if not self.main[2] <= address < self.main[3]:
            return None
        before = [(start, n) for n, start in functions.items() if start <= address < start + (4000 if n in ("main", "run_sites") else 400)]
        return max(before)[1] if before else None


def read_output(path):
    functions, truth, other = {}, {}, {}
    for line in open(path):
        words = line.split()
        if words[0] == "function":
            functions[words[1]] = int(words[2], 16)
        elif words[0] == "truth":
            truth[words[1]] = tuple(map(int, words[2:]))
        else:
            other[words[0].rstrip(":")] = words[1:]
    return functions, truth, other


def near(what, got, wanted, sigma):
    error = (got - wanted) / sigma if sigma else 0
    must(abs(got - wanted) <= SIGMAS * sigma + 1, f"{what}: {got}, should be {wanted}, {error:.1f} sigma off")
    return f"{what} {got} of {wanted}, {error:+.1f} sigma"


def deviation(count, size, interval):
    """Of an estimate of count objects, each a sample with probability p and worth 1/p then."""
    p = -math.expm1(-size / interval)
    return math.sqrt(count * (1 - p) / p)


def check(interval, output, path):
    profile = Profile(path)
    functions, truth, _ = read_output(output)
    must(profile.period == interval, f"the period is {profile.period}")
    found = profile.by_function(functions)
    for name, (size, count, live) in truth.items():
        got = found.get(name, dict.fromkeys(TYPES, 0))
        said = []
        for kind, n in (("alloc", count), ("inuse", live)):
            if n == 0:
                continue
            sigma = deviation(n, size, interval)
            said.append(near(f"{name} {kind}_objects", got[f"{kind}_objects"], n, sigma))
            near(f"{name} {kind}_space", got[f"{kind}_space"], n * size, sigma * size)
        must(got["held_space"] >= got["inuse_space"] * 0.8, f"{name} holds less than it uses")
        print("ok", "; ".join(said))
    # Who called them is known too, up to where the program or the thread began.
    for stack, _ in profile.samples:
        if any(profile.name(a, functions) in truth for a in stack):
            must(len(stack) >= 3, "a stack of fewer than three frames")
            must(any(profile.name(a, functions) in ("allocate_all", "main", "run_sites") for a in stack), "a stack without its start")


def check_held(interval, output, directory):
    functions, truth, other = read_output(output)
    pages, (meshed, packed_bytes) = float(other["pages"][0]), map(int, other["packed"])
    size, _, live = truth["small"]
    held = {}
    for when in ("before", "meshed", "written"):
        held[when] = Profile(f"{directory}/{when}.pb.gz").by_function(functions)
    before, after, written = (held[w]["small"]["held_space"] for w in ("before", "meshed", "written"))
    sigma = pages / math.sqrt(live * -math.expm1(-size / interval)) * 1.5  # shares differ
    must(abs(before - pages) < SIGMAS * sigma + pages * 0.05, f"survivors hold {before}, the pages are {pages}")
    print(f"ok {live} survivors of {size} bytes use {live * size} bytes and hold {before} of {pages:.0f}")
    used, dense = (held["before"]["medium"][t] for t in ("inuse_space", "held_space"))
    must(0.9 * used < dense < 1.2 * used, f"dense objects hold {dense}, and use {used}")
    if not meshed:
        print("skipped part: nothing was meshed in this tier")
        return
    must(after < before / 3, f"meshed, survivors hold {after}, before it was {before}")
    must(abs(after - packed_bytes) < SIGMAS * sigma * after / before + packed_bytes * 0.3,
         f"meshed, survivors hold {after}, mesh files {packed_bytes}")
    must(abs(written - before) < before * 0.2, f"written to, survivors hold {written}, before meshing it was {before}")
    print(f"ok meshed they hold {after}, mesh files {packed_bytes}; written to they hold {written}")


def check_exact(output, path):
    profile = Profile(path)
    _, truth, _ = read_output(output)
    counted = sum(values["alloc_objects"] for _, values in profile.samples)
    wanted = sum(count for _, count, _ in truth.values())
    must(wanted <= counted < wanted + 1000, f"{counted} objects in all, should be {wanted} and a few")
    lost = int(profile.comment.split(" live samples, ")[1].split()[0])
    live = sum(values["inuse_objects"] for _, values in profile.samples)
    must(lost > 0 and counted - lost - 1000 < live <= counted - lost, f"{live} live and {lost} not followed of {counted}")
    print(f"ok {counted} objects of {len(profile.samples)} stacks; {lost} were not followed")


def main():
    try:
        if sys.argv[1] == "--held":
            check_held(int(sys.argv[2]), *sys.argv[3:])
        elif sys.argv[1] == "--exact":
            check_exact(*sys.argv[2:])
        else:
            check(int(sys.argv[1]), *sys.argv[2:])
    except Wrong as wrong:
        print(f"FAIL {' '.join(sys.argv[1:])}: {wrong}")
        return 1
    return 0


sys.exit(main())
