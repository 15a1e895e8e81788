"""`python -m tests.pulling CARD FREE_BYTES`: one pull in a process of its own, since the hub's library reads its
environment once. Prints what was said and what came of it as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from configs.load import load_card
from serve_app.models import weights
from workflows.errors import InvalidDocument


def main(card: str, free_bytes: str) -> None:
    said: list[str] = []
    outcome: dict[str, object] = {"said": said}
    try:
        pulled = weights.pull(load_card(Path(card)), say=said.append, free=lambda _: int(free_bytes))
        outcome |= {"directory": str(pulled.directory), "files": pulled.files, "size": pulled.size_bytes,
                    "fetched": pulled.fetched_bytes, "checked": pulled.checked}
    except InvalidDocument as error:
        outcome["problem"] = error.problems[0].problem
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
