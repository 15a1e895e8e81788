"""`make bench`: every measurement, one after the other; tables to the screen and to `reports/`.

    python -m tests.bench [NAME [ITS OPTIONS]]      e.g. http --quick
    python -m tests.bench gpu [--dry-run]           on a machine with a GPU; not part of `make bench`
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> None:
    names = [path.stem.removeprefix("bench_") for path in sorted(Path(__file__).parent.glob("bench_*.py"))]
    modules = {**{name: f"tests.bench.bench_{name}" for name in names}, "gpu": "tests.bench.gpu"}
    asked, options = sys.argv[1:2], sys.argv[2:]
    if not set(asked) <= set(modules):
        raise SystemExit(f"{asked[0]}: no such measurement; there are {', '.join(modules)}")
    failed = []
    for name in asked or names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", modules[name], *options], check=False).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
