"""Clients that have films made while things die: each submits one, follows its steps, and then submits the next."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.client import Client, Event, Film
from tests.chaos.invariants import Seen
from tests.chaos.served import START_S

SAME = ("models.text_to_image=sketch", "models.text_to_video=sketch", "models.image_to_video=sketch",
        "models.torch_threads=1", "media.preset=ultrafast")
"""What decides about pixels here and must be said to a server whose films are compared."""
SHOTS = 3
STEPS = 40
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
OBJECTS = ("ball", "square", "triangle", "star")
MOTIONS = ("moves left", "moves right", "moves up", "falls down", "grows", "shrinks")
BACKGROUNDS = ("black", "blue", "green", "white", "red")


def film_of(seed: int, number: int) -> dict[str, Any]:
    """A small film that no other number has; one shot has a caption, which is a node of its own."""
    chance = random.Random(f"{seed}-{number}")
    shots: list[dict[str, Any]] = []
    for _ in range(SHOTS):
        colour, ground = chance.choice(COLOURS), chance.choice(BACKGROUNDS)
        shots.append({"prompt": f"a {colour} {chance.choice(OBJECTS)} {chance.choice(MOTIONS)} "
                                f"over a {ground} background"})
    shots[-1]["caption"] = f"Film {number}"
    return {"title": f"Chaos {number}", "size": "128x128", "fps": 8, "seed": chance.randrange(1, 1_000_000),
            "defaults": {"frames": 9, "steps": STEPS}, "shots": shots}


def body_of(film: Mapping[str, Any]) -> Film:
    """As it is sent."""
    return Film(name="film.json", media_type="application/json", content=json.dumps(film).encode())


@dataclass(slots=True)
class Heard:
    """The steps of one job, as a client hears them."""

    _first: dict[tuple[str, int], int] = field(default_factory=dict)
    _last: dict[tuple[str, int], int] = field(default_factory=dict)
    _newest: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, data: Mapping[str, Any]) -> None:
        """One event of the stream. A step of an attempt that was replaced says nothing: its work goes nowhere."""
        shot = data.get("shot") if name == "shot_update" else None
        if not isinstance(shot, Mapping) or not shot.get("phase"):
            return
        node_id, attempt, step = str(shot["node"]), int(shot["attempt"]), int(shot["step"])
        if attempt < self._newest.get(node_id, 0):
            return
        self._newest[node_id] = attempt
        one = (node_id, attempt)
        self._first[one] = min(self._first.get(one, step), step)
        self._last[one] = max(self._last.get(one, step), step)

    def seen(self) -> tuple[Seen, ...]:
        return tuple(Seen(node_id=node_id, attempt=attempt, first_step=first, last_step=self._last[node_id, attempt])
                     for (node_id, attempt), first in sorted(self._first.items()))


class Crowd:
    """So many clients at once, until they are told that it is enough."""

    def __init__(self, url: str, *, seed: int, clients: int) -> None:
        self._url = url
        self._seed = seed
        self._numbers = itertools.count(1)
        self._enough = threading.Event()
        self.heard: dict[str, Heard] = {}
        """By job."""
        self.troubles: list[str] = []
        """Clients that gave up, and why."""
        self._threads = [threading.Thread(target=self._follow_films, name=f"client {number}", daemon=True)
                         for number in range(clients)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self, limit_s: float) -> bool:
        """No further films; whether all clients saw the end of theirs in time."""
        self._enough.set()
        for thread in self._threads:
            thread.join(limit_s)
        return not any(thread.is_alive() for thread in self._threads)

    def _follow_films(self) -> None:
        while not self._enough.is_set():
            number = next(self._numbers)
            client = Client(self._url, patience_s=START_S)
            try:
                self._follow(client, number)
            except Exception as error:  # noqa: BLE001 - whatever a client meets is what the run is to tell
                self.troubles.append(f"the client of film {number} gave up: {type(error).__name__}: {error}")
            finally:
                client.close()

    def _follow(self, client: Client, number: int) -> None:
        body = body_of(film_of(self._seed, number))
        job_id = str(client.submit(body, idempotency_key=f"chaos-{self._seed}-{number}")["id"])
        heard = self.heard.setdefault(job_id, Heard())
        event: Event
        for event in client.events(job_id, all_steps=True):
            heard.note(event.name, event.data)
