"""Forgetting an instance that does not run: its shared memory and what of it is in the state directory."""

from __future__ import annotations

from fairvisor.bundle import earlier
from fairvisor.counters.layout import Word
from fairvisor.counters.registry import Registry
from fairvisor.counters.segment import Segment
from fairvisor.errors import SegmentError
from fairvisor.memory import InstanceMemory
from fairvisor.processes import pid_of, start_time
from fairvisor.state import StateDirectory


def forget(directory: InstanceMemory, state: StateDirectory, *, with_bundle: bool) -> list[str]:
    """Remove an instance's shared memory and its snapshot, and its last good bundle with the
    record of its file if wanted: what was removed.

    Raises SegmentError when the instance runs, OSError.
    """
    refuse_running(directory)
    places = (state.snapshot, state.bundle, state.file) if with_bundle else (state.snapshot,)
    removed = Segment.unlink(directory) + earlier.remove(directory) + directory.remove_all()
    return [str(path) for path in (*removed, *state.remove(*places))]


def refuse_running(directory: InstanceMemory) -> None:
    """Raises SegmentError when a master or a worker of this instance lives."""
    try:
        segment = Segment.attach(directory)
    except (FileNotFoundError, SegmentError):
        return  # there is none, or one that another version or boot left
    master = segment.table.word_get(Word.MASTER_PID)
    lives = master and start_time(master) == segment.table.word_get(Word.MASTER_START)
    pids = [master] if lives else [pid_of(worker.process) for worker in Registry(segment.table).workers()]
    if pids:
        raise SegmentError(f"{segment.name} is in use by process {pids[0]}: stop it first")
