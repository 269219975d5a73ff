"""`make model`: every interleaving of the large configurations.

python tests/model [WORDS]      only those whose name holds these words
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.configurations import LARGE, SMALL
from model.explore import Explored, explore
from model.protocol import Configuration, Protocol


def main(words: str) -> int:
    """Explore, print a line for each configuration; 1 when one of them goes wrong."""
    console = Console()
    chosen = [each for each in (*SMALL, *LARGE) if words in each.name]
    states = moves = wrong = 0
    for configuration in chosen:
        explored = _explored(console, configuration)
        states, moves, wrong = states + explored.states, moves + explored.moves, wrong + bool(explored.wrong)
        console.print(f"{explored.states:>10,} states {explored.moves:>11,} moves  {configuration.name}")
        if explored.wrong:
            console.print("\n".join([f"  WRONG: {explored.wrong}", *explored.trace]), style="red")
    console.print(f"{states:>10,} states {moves:>11,} moves  {len(chosen)} configurations, {wrong} wrong")
    return 1 if wrong or not chosen else 0


def _explored(console: Console, configuration: Configuration) -> Explored:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(configuration.name)

        def tell(states: int) -> None:
            progress.update(task, description=f"{configuration.name}: {states:,} states")

        return explore(Protocol(configuration), tell)


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
