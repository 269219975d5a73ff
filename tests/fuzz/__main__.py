"""`make fuzz`: every target, for longer than the tests do.

    python tests/fuzz [--executions 10000000] [--seed N] [TARGET...]

The executions are divided among the targets. A seed repeats a run. An input that breaks a promise is printed and kept
in `tests/fuzz/found/`; with its cause put right it belongs into the corpus.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.loop import Fuzzed, fuzz
from fuzz.targets import TARGETS, Target

FOUND = Path(__file__).parent / "found"


def main() -> int:
    """Fuzz what is asked for; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(each.name for each in TARGETS))
    parser.add_argument("--executions", type=int, default=1_000_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args()
    chosen = [each for each in TARGETS if not options.targets or each.name in options.targets]
    if not chosen:
        parser.error(f"there is no target {options.targets}")
    console = Console()
    console.print(f"seed {options.seed}")
    results = {
        each.name: _fuzzed(console, each, options.executions // len(chosen), options.seed) for each in chosen
    }
    broken = [name for name, result in results.items() if result.failed]
    console.print(
        f"{sum(result.executions for result in results.values()):,} executions, {len(broken)} broken"
    )
    return 1 if broken else 0


def _fuzzed(console: Console, target: Target, executions: int, seed: int) -> Fuzzed:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(target.name, total=executions)
        result = fuzz(
            target.run,
            target.corpus(),
            target.words,
            executions,
            seed,
            lambda more: progress.advance(task, more),
        )
    console.print(f"{result.executions:>12,} executions {result.outcomes:>6,} outcomes  {target.name}")
    if result.failed is not None:
        data, why = result.failed
        FOUND.mkdir(exist_ok=True)
        path = FOUND / f"{target.name}-{seed}-{result.executions}"
        path.write_bytes(data)
        console.print(f"  {why}\n  {data[:300]!r}\n  kept in {path}", style="red", markup=False)
    return result


if __name__ == "__main__":
    sys.exit(main())
