"""`make bench`: every measurement, one after the other; tables to the screen and to `reports/`.

    python -m tests.bench [NAME [ITS OPTIONS]]      e.g. http --quick
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> None:
    names = [path.stem.removeprefix("bench_") for path in sorted(Path(__file__).parent.glob("bench_*.py"))]
    asked, options = sys.argv[1:2], sys.argv[2:]
    if not set(asked) <= set(names):
        raise SystemExit(f"{asked[0]}: no such measurement; there are {', '.join(names)}")
    failed = []
    for name in asked or names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"tests.bench.bench_{name}", *options], check=False).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
