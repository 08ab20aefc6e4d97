"""Interval bookkeeping for a meeting-room planner, and a few stand-alone exercises."""
from __future__ import annotations

import argparse
import bisect
import collections
import csv
import heapq
import re
import sys
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Iterable, Iterator


@dataclass(frozen=True, order=True)
class Booking:
    start: datetime
    end: datetime
    title: str = field(compare=False)

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"{self.title!r} ends before it starts")

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    def overlaps(self, other: "Booking") -> bool:
        return self.start < other.end and other.start < self.end


class Room:
    """Keeps bookings sorted; refuses a booking that collides with another one."""

    def __init__(self, name: str, seats: int):
        self.name = name
        self.seats = seats
        self._bookings: list[Booking] = []

    def add(self, b: Booking) -> None:
        i = bisect.bisect_left(self._bookings, b)
        for neighbour in self._bookings[max(i - 1, 0):i + 1]:
            if neighbour.overlaps(b):
                raise RuntimeError(f"{self.name}: {b.title} collides with {neighbour.title}")
        self._bookings.insert(i, b)

    def gaps(self, day_start: datetime, day_end: datetime) -> Iterator[tuple[datetime, datetime]]:
        cursor = day_start
        for b in self._bookings:
            if b.end <= day_start or b.start >= day_end:
                continue
            if b.start > cursor:
                yield cursor, b.start
            cursor = max(cursor, b.end)
        if cursor < day_end:
            yield cursor, day_end


def rooms_needed(bookings: Iterable[Booking]) -> int:
    """Smallest number of rooms in which all bookings fit (sweep with a heap of end times)."""
    ends: list[datetime] = []
    best = 0
    for b in sorted(bookings):
        while ends and ends[0] <= b.start:
            heapq.heappop(ends)
        heapq.heappush(ends, b.end)
        best = max(best, len(ends))
    return best


def read_bookings(path: Path) -> list[Booking]:
    with path.open(newline="", encoding="utf-8") as handle:
        rows = csv.DictReader(handle, delimiter=";")
        return [
            Booking(datetime.fromisoformat(r["from"]), datetime.fromisoformat(r["to"]), r["title"].strip())
            for r in rows
            if not r["title"].startswith("#")
        ]


TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?)|(.))")


def evaluate(text: str) -> float:
    """Recursive-descent calculator: + - * / ^ unary minus and parentheses."""
    tokens = [(num, op) for num, op in TOKEN.findall(text.strip()) if num or op.strip()]
    pos = 0

    def peek() -> str | None:
        return tokens[pos][1] if pos < len(tokens) else None

    def atom() -> float:
        nonlocal pos
        if pos >= len(tokens):
            raise SyntaxError("unexpected end")
        num, op = tokens[pos]
        pos += 1
        if num:
            return float(num)
        if op == "-":
            return -power()
        if op == "(":
            value = expr()
            if peek() != ")":
                raise SyntaxError("missing )")
            pos += 1
            return value
        raise SyntaxError(f"unexpected {op!r}")

    def power() -> float:
        nonlocal pos
        base = atom()
        if peek() == "^":
            pos += 1
            return base ** power()
        return base

    def term() -> float:
        nonlocal pos
        value = power()
        while (op := peek()) in ("*", "/"):
            pos += 1
            rhs = power()
            value = value * rhs if op == "*" else value / rhs
        return value

    def expr() -> float:
        nonlocal pos
        value = term()
        while (op := peek()) in ("+", "-"):
            pos += 1
            rhs = term()
            value = value + rhs if op == "+" else value - rhs
        return value

    result = expr()
    if pos != len(tokens):
        raise SyntaxError(f"trailing input at token {pos}")
    return result


def anagrams(words):
    groups = collections.defaultdict(set)
    for w in words:
        groups["".join(sorted(w.casefold()))].add(w)
    return sorted((sorted(g) for g in groups.values() if len(g) > 1), key=len, reverse=True)


def main(argv: list[str] | None = None) -> int:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("file", type=Path, nargs="?")
    ap.add_argument("--calc", metavar="EXPR")
    args = ap.parse_args(argv)
    if args.calc:
        print(f"{evaluate(args.calc):g}")
    if args.file:
        try:
            print(rooms_needed(read_bookings(args.file)))
        except (OSError, KeyError, ValueError) as exc:
            print(f"error: {exc}", file=sys.stderr)
            return 1
    return 0


def test_evaluate():
    assert evaluate("2+3*4") == 14
    assert evaluate("2^3^2") == 512
    assert evaluate("-(1 + 2) / 4") == -0.75


if __name__ == "__main__":
    raise SystemExit(main())
