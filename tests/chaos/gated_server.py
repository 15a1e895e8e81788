"""`reelray serve` with gated models in place of the plain ones; all else is the same."""

from __future__ import annotations

import argparse
import signal
import threading

from configs.load import load_settings
from serve_app.cluster import prepare_environment


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", default="ci")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    settings = load_settings(options.profile, options.overrides)
    prepare_environment(settings)
    from serve_app.session import Session
    from serve_app.workplace import open_workplace
    from tests.chaos.gated import GatedModel

    open_workplace(settings)  # makes the tables
    session = Session(settings, only=(), http=True, model=GatedModel)
    stopped = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    while not stopped.wait(0.5):
        pass
    session.close()


if __name__ == "__main__":
    main()
