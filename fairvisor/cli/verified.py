"""Whether an audit log is as it was written: what `fairvisor logs --verify` finds.

The lines of all files are followed along their chain (`fairvisor/chain.py`), in the order in which they were written.
What is wrong is named with its place and its kind. A line that a killed writer or a full disk cut short is no fault
where the next line vouches for it. Which files there are is the business of `logfiles.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from fairvisor.chain import OF_FILE, Head, Link, digest, is_authentic, link_in, over
from fairvisor.cli.logfiles import document_of, lines_of
from fairvisor.cli.screen import print_json, print_line
from fairvisor.linefile import read_head

MAX_FINDINGS: Final = 100  # that are kept; the rest is counted
TORN: Final = "torn"
_MAX_STRAY: Final = 10_000  # lines between two of the chain: a batch that is cut short leaves one


class Place(NamedTuple):
    """The file and the number of a line, from 1."""

    file: str
    line: int


class Finding(NamedTuple):
    """One finding. `torn` is no fault; the other kinds are altered, missing, reordered, inserted, new_chain, no_end,
    no_key and unkeyed."""

    kind: str
    place: Place
    text: str


class _Last(NamedTuple):
    """The last line that was read of a chain."""

    seq: int
    digests: tuple[str, ...]  # with each of the keys
    place: Place
    is_authentic: bool  # without a key: as far as it can be known


class _Gap:
    """Lines that are missing at a place, and may come later."""

    def __init__(self, first: int, after: int, place: Place) -> None:
        self.first = first
        self.after = after
        self.place = place
        self.came = 0

    def finding(self) -> Finding:
        """Return whether they came later (reordered) or not (missing)."""
        one = self.first == self.after - 1
        what = f"line {self.first}" if one else f"lines {self.first} to {self.after - 1}"
        if self.came >= self.after - self.first:
            return Finding(
                "reordered", self.place, f"{what} of the chain should be before it, and come later"
            )
        return Finding("missing", self.place, f"{what} of the chain should be before it")


class Verifier:
    """Follows the lines of a log, given in order with `line`, and says with `end` what was found."""

    def __init__(self, keys: Sequence[bytes], head: Head | None, *, ends: bool = False) -> None:
        """`keys` are the key of the chain and the earlier one, if it is being replaced.

        `head` is that of the file's chain before the log was read, None if it is not known. `ends`: the end of the
        chain is among the lines, so there must be a head.
        """
        self._keys = keys
        self._is_keyed = any(keys)
        self._head = head
        self._ends = ends
        # what changes
        self.lines = 0  # of a chain
        self.unchained = 0  # before the chain begins
        self.lost = 0  # events that are in no line
        self.begins_at = 0  # the first line of the file's chain that is there
        self._lasts: dict[str, _Last] = {}
        self._has_file = False
        self._has_matched = False
        self._stray: list[tuple[Place, bytes]] = []
        self._found: list[Finding | _Gap] = []
        self._number = 0
        self._place = Place("", 0)

    @property
    def knows_end(self) -> bool:
        """Return whether lines that were cut off at the end would be found missing."""
        return self._head is not None

    def line(self, place: Place, line: bytes) -> None:
        """Take the next line, without its end."""
        if place.file != self._place.file:  # no line of the next file vouches for what ends this one
            self._judge_stray(vouched=True)
        self._place = place
        link = link_in(document_of(line))
        # A chain of a process is not written to a file that has its own: its first line would need no proof.
        if link is not None and not (self._has_file and not link.chain.startswith(OF_FILE)):
            self.lines += 1
            self.lost += link.lost
            self._follow(place, line, link)
        elif self._has_file:
            self._stray.append((place, line))
            if len(self._stray) > _MAX_STRAY:
                self._judge_stray(vouched=False)
        else:
            self.unchained += 1

    def end(self) -> tuple[list[Finding], int]:
        """Return what was found, the first MAX_FINDINGS in the order of the log, and how many there are."""
        self._judge_stray(vouched=True)
        head = self._head
        last = self._lasts.get(head.chain) if head is not None else None
        if head is not None and head.seq > (last.seq if last is not None else 0):
            first = last.seq + 1 if last is not None else 1
            self._find("missing", self._place, f"lines {first} to {head.seq} of the chain should follow it")
        if self._ends and self._has_file and head is None and not self._number:
            text = "whether lines are missing after it is not known: the .chain file was removed or altered"
            self._find("no_end", self._place, text)
        return [each.finding() if isinstance(each, _Gap) else each for each in self._found], self._number

    def _follow(self, place: Place, line: bytes, link: Link) -> None:
        last, head = self._lasts.get(link.chain), self._head
        own = tuple([digest(key, line) for key in self._keys])
        authentic = self._authenticate(place, line, link)
        if last is None:
            self._begin(place, link)
        elif link.seq <= last.seq:
            self._out_of_order(place, link, last)
            return
        elif link.seq > last.seq + 1:
            self._skip(place, link, last)
        else:
            self._compare(link, last, authentic=authentic)
        self._lasts[link.chain] = _Last(link.seq, own, place, authentic)
        known = head.digest if head is not None and (head.chain, head.seq) == (link.chain, link.seq) else ""
        if known and authentic and known not in own:
            self._find("altered", place, "it is not the line whose hash is in the .chain file")

    def _begin(self, place: Place, link: Link) -> None:
        """Begin to follow a chain. A file has one, and each process has one."""
        if link.chain.startswith(OF_FILE):
            if self._has_file:
                text = (
                    "another chain begins: the .chain file was removed or altered, or the key is another one"
                )
                self._find("new_chain", place, text)
            elif link.seq > 1 and self.unchained + self.lines > 1:
                self._find(
                    "altered",
                    place,
                    f"it is line {link.seq} of the chain, and what is before it is not of it",
                )
            if (
                not self._has_file
            ):  # lines of a process may be there from a time when the file was standard output
                self.unchained, self.lines = self.unchained + self.lines - 1, 1
            self.begins_at = self.begins_at or link.seq
            self._has_file = True
            self._judge_stray(vouched=False)
        if link.seq == 1 and link.prev:
            self._find("altered", place, "it says of itself that it is the first, and that one was before it")

    def _out_of_order(self, place: Place, link: Link, last: _Last) -> None:
        for gap in self._found:
            if isinstance(gap, _Gap) and gap.first <= link.seq < gap.after:
                gap.came += 1
                return
        self._find("reordered", place, f"it is line {link.seq} of the chain, and follows line {last.seq}")

    def _skip(self, place: Place, link: Link, last: _Last) -> None:
        """Report a gap. Where other lines are in its place, they are reported as altered."""
        if self._stray:
            text = f"it is no line of the chain; after it comes line {link.seq}, before it line {last.seq}"
            self._find("altered", self._stray[0][0], text)
            self._stray.clear()
        else:
            self._add(_Gap(last.seq + 1, link.seq, place))

    def _authenticate(self, place: Place, line: bytes, link: Link) -> bool:
        """Report a line that was not written with one of the keys; return whether it was, as far as it can be known."""
        if not self._is_keyed:
            if link.mac:
                self._find("no_key", place, "it was written with FAIRVISOR_AUDIT_KEY, which is not set")
            return not link.mac
        if not link.mac:
            text = "it was written without the key, as whoever can write the file can do it"
            self._find("unkeyed", place, text)
            return False
        if is_authentic(line, *self._keys):
            self._has_matched = True
            return True
        other = "" if self._has_matched else ", or the key is another one"
        self._find("altered", place, f"it is not as it was written{other}")
        return False

    def _compare(self, link: Link, last: _Last, *, authentic: bool) -> None:
        """Compare the `prev` of a line with the hash of the line before, unless one of them is reported already."""
        follows = self._follows(link, last)
        if authentic and last.is_authentic and not follows:
            self._find("altered", last.place, "it is not as it was when the line after it was written")
        if link.chain.startswith(OF_FILE):
            if follows:
                self._judge_stray(vouched=bool(link.torn))
            self._stray.clear()

    def _follows(self, link: Link, last: _Last) -> bool:
        """Return whether a line has the hash of the last one, and of what is between them, with any of the keys."""
        torn = b"\n".join([line for _, line in self._stray]) if link.torn else b""
        return any(link.prev == over(key, before, torn) for before in last.digests for key in self._keys)

    def _judge_stray(self, *, vouched: bool) -> None:
        """Report the lines between two of the chain: as torn if the next line has their hash, else as inserted."""
        for place, line in self._stray:
            if vouched and not document_of(line):
                self._find(TORN, place, "it was cut short by a crash or a full disk")
            else:
                self._find("inserted", place, "it is no line of the chain")
        self._stray.clear()

    def _find(self, kind: str, place: Place, text: str) -> None:
        self._add(Finding(kind, place, text))

    def _add(self, finding: Finding | _Gap) -> None:
        self._number += 1
        if len(self._found) < MAX_FINDINGS:
            self._found.append(finding)


def show_verified(files: Sequence[Path], log: Path | None, keys: Sequence[bytes], output_format: str) -> bool:
    """Print and return whether these files, in this order, are intact. `log` is the one that is being written."""
    verifier = Verifier(keys, read_head(log, *keys) if log is not None else None, ends=log is not None)
    spans = {}
    for file in files:
        spans[str(file)] = _read(file, verifier)
    report = _report(spans, verifier)
    if output_format == "json":
        print_json(report)
    else:
        _print(report)
    return bool(report["intact"])


def _read(file: Path, verifier: Verifier) -> Mapping[str, Any]:
    """Read one file; return its number of lines and the times of the first and the last."""
    number, first, last = 0, "", ""
    for number, line in enumerate(lines_of(file), 1):
        verifier.line(Place(str(file), number), line)
        time = document_of(line).get("time")
        if isinstance(time, str):
            first, last = first or time, time
    return {"lines": number, "first": first, "last": last}


def _report(files: Mapping[str, Mapping[str, Any]], verifier: Verifier) -> dict[str, Any]:
    """Return the outcome as plain data."""
    found, number = verifier.end()
    wrong = [each for each in found if each.kind != TORN]
    return {
        "intact": not wrong,
        "files": [
            {"file": name, **about, "wrong": sum(each.place.file == name for each in wrong)}
            for name, about in files.items()
        ],
        "lines": verifier.lines,
        "unchained": verifier.unchained,
        "begins_at": verifier.begins_at,
        "lost": verifier.lost,
        "end_is_known": verifier.knows_end,
        "findings": [{"kind": each.kind, **each.place._asdict(), "text": each.text} for each in found],
        "more": number - len(found),
    }


def _print(report: Mapping[str, Any]) -> None:
    width = max(len(each["file"]) for each in report["files"])
    print_line((f"{'file':{width}}  {'lines':>9}  {'first':24}  {'last':24}  result", "bold"))
    for each in report["files"]:
        result = (f"{each['wrong']} wrong", "bold red") if each["wrong"] else ("as written", "green")
        print_line(
            f"{each['file']:{width}}  {each['lines']:>9,}  {each['first']:24}  {each['last']:24}  ", result
        )
    for each in report["findings"]:
        style = "yellow" if each["kind"] == TORN else "bold red"
        print_line((each["kind"], style), f"  {each['file']} line {each['line']}: {each['text']}")
    if report["more"]:
        print_line(f"and {report['more']:,} more")
    for text in _remarks(report):
        print_line(text)


def _remarks(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the chain does not cover."""
    if not report["lines"]:
        yield "no line has a place in a chain: it cannot be said whether the log was altered"
    elif report["unchained"]:
        yield f"the first {report['unchained']:,} lines are from before the chain, which says nothing of them"
    if report["begins_at"] > 1:
        yield f"the chain is there from line {report['begins_at']:,} on: of files before that it says nothing"
    if report["intact"] and report["lines"] and not report["end_is_known"]:
        yield "whether lines are missing at the end is not known: there is no file that says where the chain has got to"
    if report["lost"]:
        yield f"{report['lost']:,} events could not be written, and were counted"
