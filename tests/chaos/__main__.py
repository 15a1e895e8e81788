"""`make chaos`: kills at random by a seed, and checks what must be true of every film; 1 when anything is not.

    python -m tests.chaos [--seed N] [--kills K] [--jobs J] [--database sqlite|postgres] [--out DIR]
    python -m tests.chaos matrix [--database sqlite|postgres] [--out DIR]    each component at each moment of a clip
    python -m tests.chaos nodes [--kills K] [--how killed|stopped|cut-off] [--plain-ray] [--out DIR]
                                                              whole machines, and how soon work goes on
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from pathlib import Path

from tests.chaos import report
from tests.chaos.monkey import REPEAT_LIMIT, Order, run
from tests.chaos.schedule import schedule
from tests.chaos.served import Component

KILLS, MACHINES = 300, 3
"""How many die where nothing else is said."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    logging.basicConfig(level=logging.ERROR)
    # Stopped in order, whoever started it: what it has started itself must not outlive it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    options = _options(sys.argv[1:])
    if options.what == "matrix":
        return _matrix(options)
    if options.what == "nodes":
        return _nodes(options)
    order = Order(seed=options.seed, kills=options.kills, jobs=options.jobs, database=options.database,
                  compare=options.compare, limit_s=options.minutes * 60, repeat_limit=options.repeat_limit)
    if options.dry_run:
        struck = [one for one in Component if one is not Component.DATABASE or order.database == "postgres"]
        for strike in schedule(order.seed, order.kills, struck):
            print(strike)
        return 0
    outcome = run(order, say)
    path = report.write(outcome, options.out, f"kills_{order.database}_{order.seed}")
    say(f"the table is in {path}")
    return 0 if report.is_good(outcome) else 1


def _matrix(options: argparse.Namespace) -> int:
    from tests.chaos import matrix  # torch

    cells, troubles = matrix.play_all(options.database, say)
    say(f"the table is in {matrix.write(options.database, cells, troubles, options.out)}")
    return 1 if troubles or any(cell.violations for cell in cells) else 0


def _nodes(options: argparse.Namespace) -> int:
    if options.how == "cut-off":
        from tests.chaos import partition

        partition.in_own_net("tests.chaos")
    from tests import conftest  # noqa: F401 - sets the token that the cluster and those who join it share
    from tests.chaos import node_death  # ray

    path, good = node_death.measure(options.kills, options.out, say, how=node_death.How(options.how),
                                    watch={} if options.plain_ray else node_death.WATCH)
    say(f"the table is in {path}")
    return 0 if good else 1


def _options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("kills", "matrix", "nodes"), default="kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, help=f"{KILLS}; of whole machines {MACHINES}")
    parser.add_argument("--jobs", type=int, default=4, help="films that are open at the same time")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--how", choices=("killed", "stopped", "cut-off"), default="killed",
                        help="what befalls a machine; cut-off needs root")
    parser.add_argument("--plain-ray", action="store_true", help="machines are watched as Ray does by itself")
    parser.add_argument("--compare", type=int, default=20, help="films compared with undisturbed ones, frame by frame")
    parser.add_argument("--minutes", type=float, default=120.0, help="no strike after so long")
    parser.add_argument("--repeat-limit", type=int, default=REPEAT_LIMIT, help="steps that a resume may make again")
    parser.add_argument("--out", type=Path, default=Path("out/chaos"))
    parser.add_argument("--dry-run", action="store_true", help="print the schedule and do nothing")
    options = parser.parse_args(words)
    if options.kills is None:
        options.kills = MACHINES if options.what == "nodes" else KILLS
    return options


if __name__ == "__main__":
    raise SystemExit(main())
