"""The slot protocol as a machine of single steps: what `fairvisor/counters/_slots.h` does, access by access.

A step is one load, or one compare-and-swap, of the record of one slot; what follows it without touching shared memory
belongs to it. Each step has the label that the same line of the C source carries (`step: name`). Loads are of half a
record, so torn pairs are part of the model. A process reads its clock when an operation starts, and may then stall for
ever or be killed before any step. Which of several possible slots is taken or evicted is left open: every choice is
followed. `explore.py` walks through everything that can happen; this module knows how one process moves.

What is left out: more than one window, the arithmetic of the operations (a record holds a count up to a limit),
and the hints `used` and `key`, which no decision about a record rests on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

FREE, HELD, TIME, TOTAL = 0, 1, 2, 3
CLAIM = 4  # in the source a TOTAL whose value has a mark

# Half `a` of a record is key, kind and expiry, half `b` the value: a count, or the nonce of a reservation. The key of a
# claim is its stamp too.
Record = tuple[int, int, int, int]
NOTHING: Record = (0, FREE, 0, 0)
NOWHERE = (-1, NOTHING)
Place = tuple[int, Record]

# Each step of the model and the label of the same step in the C source; the loads of two halves are two steps here.
STEPS = {
    "look a": "look", "look b": "look", "fast update": "update", "scan a": "scan", "scan b": "scan", "update": "update",
    "reserve": "reserve", "convert": "convert", "release": "release", "drop": "drop", "sweep a": "sweep",
    "sweep b": "sweep", "sweep": "sweep", "read whole": "read whole", "peek a": "peek", "peek b": "peek",
    "peek again": "peek", "note": "note", "ask": "ask",
}  # fmt: skip
# Labels that are no steps here: a nonce is drawn with the reservation that needs it, adopting touches no memory,
# without caches every load comes after a fence, and nothing rests on a survey of how full the table is.
WITHIN = ("nonce", "adopt", "fence", "survey")


class Sight(NamedTuple):
    """What a scan has seen so far: `see` in the C source."""

    first: Place = NOWHERE
    second: Place = NOWHERE
    spare: Place = NOWHERE
    oldest: Place = NOWHERE


BLIND = Sight()


class Process(NamedTuple):
    """The registers of one process. `at` names the step it takes next."""

    at: str
    turn: int = 0  # which operation of its script
    took: bool = False  # whether the last take, or settlement, was allowed
    now: int = 0
    i: int = 0  # slots of the window that were passed
    half: tuple[int, int, int] = (0, 0, 0)  # half `a` of the slot that is being read
    held: Place = NOWHERE  # the record that the next compare-and-swap expects
    sight: Sight = BLIND
    seen: Place = NOWHERE
    mine: bool = False


DONE = Process("done")
DEAD = Process("dead")


class State(NamedTuple):
    """Everything: the clock, kills so far, the slots, what each key truly was charged, and the processes; the stamp of
    evicted claims, and how often each key's settlement gave back."""

    time: int
    kills: int
    slots: tuple[Record, ...]
    truth: tuple[int, ...]
    processes: tuple[Process, ...]
    evicted: int = 0
    given: tuple[int, ...] = ()


class Violation(Exception):
    """The protocol broke a promise."""


class Configuration(NamedTuple):
    """What is explored. A script is a list of operations such as "take 1": what and, but for sweep, which key.

    "settle 1" claims key 1 as a take would, and gives something back where no claim as old was evicted.
    """

    name: str
    scripts: tuple[tuple[str, ...], ...]
    slots: int
    keys: int
    limit: int = 1
    ticks: int = 1
    kills: int = 1
    kind: int = TIME
    before: tuple[Record, ...] = ()
    starts: tuple[int, ...] = ()  # where each key's probing starts; none: at the first slot


class Protocol:
    """One configuration of the protocol. Subclasses in the tests plant mistakes by overriding one rule each."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._scripts = [[self._read(text) for text in script] for script in configuration.scripts]
        self._window = [
            [
                (start + i) % configuration.slots
                for i in range(configuration.slots)
            ]
            for start in (configuration.starts or (0,) * configuration.keys)
        ]  # fmt: skip
        self._steps: dict[str, Callable[[State, Process, str, int], list[tuple[State, Process]]]] = {
            "start": self._start, "look a": self._look_a, "look b": self._look_b, "fast update": self._fast_update,
            "scan a": self._scan_a, "scan b": self._scan_b, "update": self._update, "reserve": self._reserve,
            "convert": self._convert, "release": self._release, "drop": self._drop,
            "sweep a": self._sweep_a, "sweep b": self._sweep_b, "sweep": self._sweep,
            "read whole": self._read_whole, "peek a": self._peek_a, "peek b": self._peek_b,
            "peek again": self._peek_again, "note": self._note, "ask": self._ask,
        }  # fmt: skip

    @staticmethod
    def _read(text: str) -> tuple[str, int]:
        word, _, key = text.partition(" ")
        return word, int(key or 0)

    # ---- rules that a mistake may change

    def nonce(self, state: State) -> int:
        """One that nobody holds or remembers: any would do, the least keeps the number of states small."""
        used = {record[3] for record in state.slots if record[1] == HELD}
        for process in state.processes:
            places = (process.seen, process.held, *process.sight)
            used |= {record[3] for _, record in places if record[1] == HELD}
        return next(number for number in range(1, len(used) + 2) if number not in used)

    def stood(self, process: Process) -> bool:
        """Whether the first reservation that the scan met is the one that stood before it."""
        return process.sight.first == process.seen

    def may_evict(self, kind: int) -> bool:
        return kind in (TIME, CLAIM)

    def notes(self, victim: Record, now: int) -> bool:
        """Whether a slot is noted before it is taken: it has a claim that has not run out."""
        return victim[1] == CLAIM and victim[2] > now

    def reserved(self, state: State, process: Process, place: Place, key: int) -> tuple[State, Process]:
        """The slot was won: scan again with the reservation standing."""
        return state, process._replace(at="scan a", i=0, sight=BLIND, seen=place, mine=True)

    def reservation(self, state: State, process: Process, key: int) -> Record:
        return (key, HELD, process.now + 1, self.nonce(state))

    def refuses_unchecked(self) -> bool:
        """Whether a refusal rests on what was read, without a compare-and-swap."""
        return False

    def drops(self, sight: Sight) -> bool:
        """Whether the later of two reservations is dropped."""
        return sight.second != NOWHERE

    # ---- one step

    def initial(self) -> State:
        configuration = self.configuration
        slots = (*configuration.before, *[NOTHING] * (configuration.slots - len(configuration.before)))
        truth = [0] * configuration.keys
        for key, kind, _, value in slots:
            if kind >= TIME:
                truth[key - 1] = value
        processes = tuple(Process("start") for _ in self._scripts)
        return State(0, 0, slots, tuple(truth), processes, 0, (0,) * configuration.keys)

    def steps(self, state: State, number: int) -> list[State]:
        """All that process `number` can do next; empty when it has ended. Raises Violation."""
        process = state.processes[number]
        if process.at in ("done", "dead"):
            return []
        word, key = self._scripts[number][process.turn]
        outcomes = self._steps[process.at](state, process, word, key)
        return [self._settled(after, number, moved, word) for after, moved in outcomes]

    def _settled(self, state: State, number: int, process: Process, word: str) -> State:
        """The state with the process moved on to its next operation when one ended."""
        if process.at == "end" and word == "settle" and process.took:
            process = process._replace(at="ask", took=False)
        elif process.at == "end":
            turn = process.turn + 1
            process = DONE if turn == len(self._scripts[number]) else Process("start", turn, process.took)
        processes = state.processes
        return state._replace(processes=(*processes[:number], process, *processes[number + 1 :]))

    def _start(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        if word == "give" and not process.took:
            return [(state, process._replace(at="end"))]
        at = {"sweep": "sweep a", "save": "sweep a", "peek": "peek a"}.get(word, "look a")
        return [(state, process._replace(at=at, now=state.time, i=0))]

    def _slot(self, process: Process, key: int) -> int:
        return self._window[key - 1][process.i]

    def _passed(self, process: Process, at: str, then: str) -> Process:
        """The next slot, or `then` behind the last one."""
        i = process.i + 1
        if i == self.configuration.slots:
            return process._replace(at=then, i=0, half=(0, 0, 0))
        return process._replace(at=at, i=i, half=(0, 0, 0))

    # step: look
    def _look_a(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        half = state.slots[self._slot(process, key)][:3]
        if half[0] != key or half[1] == HELD:
            return [(state, self._passed(process, "look a", "scan a"))]
        return [(state, process._replace(at="look b", half=half))]

    def _look_b(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        at = self._slot(process, key)
        held = (at, (*process.half, state.slots[at][3]))
        if self._refused_unchecked(word, held[1], process.now):
            return [(state, self._refuse(state, process, key))]
        return [(state, process._replace(at="fast update", i=0, half=(0, 0, 0), held=held))]

    def _fast_update(
        self, state: State, process: Process, word: str, key: int
    ) -> list[tuple[State, Process]]:
        return self._update(state, process, word, key)

    # step: scan
    def _scan_a(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        half = state.slots[self._slot(process, key)][:3]
        wants_room = word in ("take", "settle") and process.seen == NOWHERE
        if half[0] == key or (wants_room and self._is_room(half, process)):
            return [(state, process._replace(at="scan b", half=half))]
        return self._scanned(state, process, word)

    def _is_room(self, half: tuple[int, int, int], process: Process) -> bool:
        if half[1] == FREE or half[2] <= process.now:
            return True
        return self.may_evict(half[1]) and process.sight.spare == NOWHERE

    def _scan_b(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        at = self._slot(process, key)
        half = process.half
        place = (at, (*half, state.slots[at][3]))
        sight = process.sight
        if half[0] == key and half[1] != HELD:
            return [(state, self._met(process, place))]
        if half[0] == key:
            name = "first" if sight.first == NOWHERE else "second"
            return self._scanned(state, process._replace(sight=sight._replace(**{name: place})), word)
        name = "spare" if half[1] == FREE or half[2] <= process.now else "oldest"
        choices = [sight._replace(**{name: place})]
        if getattr(sight, name) != NOWHERE:
            choices.append(sight)
        return [
            pair for choice in choices for pair in self._scanned(state, process._replace(sight=choice), word)
        ]

    def _met(self, process: Process, place: Place) -> Process:
        """The scan met the record of the key."""
        at = "release" if process.mine else "update"
        return process._replace(at=at, i=0, half=(0, 0, 0), sight=BLIND, held=place)

    def _scanned(self, state: State, process: Process, word: str) -> list[tuple[State, Process]]:
        """One slot more was read; behind the last one it is decided what comes next."""
        process = self._passed(process, "scan a", "scanned")
        if process.at != "scanned":
            return [(state, process)]
        sight = process.sight
        again = process._replace(at="scan a", i=0, sight=BLIND)
        if word not in ("take", "settle"):
            return [(state, process._replace(at="end"))]
        if sight.first == NOWHERE and process.seen != NOWHERE:
            return [(state, again._replace(seen=NOWHERE, mine=False))]
        if sight.first == NOWHERE:
            victim = sight.spare if sight.spare != NOWHERE else sight.oldest
            if victim == NOWHERE:
                return [(state, process._replace(at="end", took=False))]  # full
            at = "note" if self.notes(victim[1], process.now) else "reserve"
            return [(state, again._replace(at=at, held=victim))]
        if self.drops(sight):
            return [(state, again._replace(at="drop", held=sight.second))]
        if self.stood(process):
            return [(state, again._replace(at="convert", held=sight.first))]
        return [(state, again._replace(seen=sight.first, mine=False))]  # step: adopt

    # step: update
    def _update(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        at, old = process.held
        if self._refused_unchecked(word, old, process.now):
            return [(state, self._refuse(state, process, key))]
        lost = process._replace(at="scan a", i=0, held=NOWHERE)
        if state.slots[at] != old:
            return [(state, lost)]
        runs_out = old[2] <= process.now
        if word == "delete":
            return [(self._written(state, at, NOTHING, key, 0), process._replace(at="end"))]
        if word == "give":
            value = old[3] if runs_out else max(0, old[3] - 1)
            after = self._written(state, at, (*old[:3], value), key, value)
            return [(after, process._replace(at="end", took=False))]
        if not runs_out and old[3] >= self.configuration.limit:
            return [(state, self._refuse(state, process, key))]
        value = 1 if runs_out else old[3] + 1
        charged = 1 if runs_out else state.truth[key - 1] + 1
        put = (key, old[1], max(old[2], process.now + 1), value)
        return [(self._written(state, at, put, key, charged), process._replace(at="end", took=True))]

    def _refused_unchecked(self, word: str, old: Record, now: int) -> bool:
        full = old[2] > now and old[3] >= self.configuration.limit
        return self.refuses_unchecked() and word == "take" and full

    def _refuse(self, state: State, process: Process, key: int) -> Process:
        if state.truth[key - 1] < self.configuration.limit:
            raise Violation(f"key {key} was refused at {state.truth[key - 1]} of {self.configuration.limit}")
        return process._replace(at="end", took=False)

    # step: note
    def _note(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        stamp = process.held[1][0]
        return [(state._replace(evicted=max(state.evicted, stamp)), process._replace(at="reserve"))]

    # step: ask
    def _ask(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        if key > state.evicted:
            given = (*state.given[: key - 1], state.given[key - 1] + 1, *state.given[key:])
            state = state._replace(given=given)
            if given[key - 1] > 1:
                raise Violation(f"the settlement of key {key} gave back twice")
        return [(state, process._replace(at="end"))]

    # step: nonce, step: reserve
    def _reserve(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        at, old = process.held
        if state.slots[at] != old:
            return [(state, process._replace(at="scan a", held=NOWHERE))]
        held = self.reservation(state, process, key)
        if old[1] >= TIME:
            if old[2] <= process.now and old[2] > state.time:
                raise Violation(f"key {old[0]} was taken over as run out while it lives")
            if old[2] > process.now and old[1] == TOTAL:
                raise Violation(f"the total of key {old[0]} was evicted")
            state = self._written(state, at, held, old[0], 0)
        else:
            state = self._put(state, at, held)
        return [self.reserved(state, process._replace(held=NOWHERE), (at, held), key)]

    # step: convert
    def _convert(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        at, held = process.held
        if state.slots[at] != held:
            again = process._replace(at="scan a", held=NOWHERE, seen=NOWHERE, mine=False)
            return [(state, again)]
        return [(self.charge(state, process, at, key), process._replace(at="end", took=True))]

    def charge(self, state: State, process: Process, at: int, key: int) -> State:
        """The first record of the key."""
        record = (key, self.configuration.kind, process.now + 1, 1)
        return self._written(state, at, record, key, state.truth[key - 1] + 1)

    # step: release
    def _release(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        at, mine = process.seen
        if state.slots[at] == mine:
            state = self._put(state, at, NOTHING)
        return [(state, process._replace(at="update", seen=NOWHERE, mine=False))]

    # step: drop, step: fence
    def _drop(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        at, second = process.held
        if state.slots[at] == second:
            state = self._put(state, at, NOTHING)
        again = process._replace(at="scan a", held=NOWHERE)
        return [(state, again._replace(seen=NOWHERE, mine=False) if process.seen[0] == at else again)]

    # step: sweep, step: read whole
    def _sweep_a(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        half = state.slots[process.i][:3]
        wanted = (
            half[1] != FREE and half[2] <= process.now if word == "sweep" else self._is_live(half, process)
        )
        if not wanted:
            return [(state, self._passed(process, "sweep a", "end"))]
        return [(state, process._replace(at="sweep b", half=half))]

    @staticmethod
    def _is_live(half: tuple[int, int, int], process: Process) -> bool:
        return half[1] >= TIME and half[2] > process.now

    def _sweep_b(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        held = (process.i, (*process.half, state.slots[process.i][3]))
        return [(state, process._replace(at="sweep" if word == "sweep" else "read whole", held=held))]

    def _sweep(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        at, old = process.held
        if state.slots[at] == old:
            if old[2] > state.time:
                raise Violation(f"a record of key {old[0]} was swept while it lives")
            state = (
                self._written(state, at, NOTHING, old[0], 0)
                if old[1] >= TIME
                else self._put(state, at, NOTHING)
            )
        return [(state, self._passed(process._replace(held=NOWHERE), "sweep a", "end"))]

    def _read_whole(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        at, old = process.held
        process = process._replace(held=NOWHERE)
        if state.slots[at] != old:
            return [(state, process._replace(at="sweep a", half=(0, 0, 0)))]
        if state.truth[old[0] - 1] != old[3]:
            raise Violation(f"key {old[0]} is saved with {old[3]}, and has {state.truth[old[0] - 1]}")
        return [(state, self._passed(process, "sweep a", "end"))]

    # step: peek
    def _peek_a(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        half = state.slots[self._slot(process, key)][:3]
        if half[0] != key or half[1] == HELD:
            return [(state, self._passed(process, "peek a", "end"))]
        return [(state, process._replace(at="peek b", half=half))]

    def _peek_b(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        return [(state, process._replace(at="peek again"))]

    def _peek_again(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        half = state.slots[self._slot(process, key)][:3]
        if half == process.half or half[0] != key or half[1] == HELD:
            return [(state, process._replace(at="end"))]
        return [(state, process._replace(at="peek b", half=half))]

    # ---- what is written

    def _put(self, state: State, at: int, record: Record) -> State:
        slots = state.slots
        return state._replace(slots=(*slots[:at], record, *slots[at + 1 :]))

    def _written(self, state: State, at: int, record: Record, key: int, charged: int) -> State:
        """A live record of `key` came, changed or went; the truth about the key is now `charged`."""
        truth = state.truth
        state = self._put(state, at, record)._replace(truth=(*truth[: key - 1], charged, *truth[key:]))
        self.check(state)
        return state

    def check(self, state: State) -> None:
        """What always holds: one record for each key at most, and it says what the key was truly charged."""
        found: dict[int, int] = {}
        for key, kind, _, value in state.slots:
            if kind >= TIME:
                if key in found:
                    raise Violation(f"key {key} has two live records")
                found[key] = value
        for key, charged in enumerate(state.truth, 1):
            if found.get(key, 0) != charged:
                raise Violation(f"key {key} was charged {charged}, its record says {found.get(key, 0)}")
            if charged > self.configuration.limit:
                raise Violation(
                    f"key {key} was admitted {charged} times, the limit is {self.configuration.limit}"
                )


def shown(process: Any) -> str:
    """A process in a few words, for a counterexample."""
    return f"{process.at} (now {process.now}, slot {process.i})"
