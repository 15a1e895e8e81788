"""Replicas help with one call and part again: the same pictures, one end for all, nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from configs.model_card import ModelCard, Task
from configs.parallel import Elastic
from configs.settings import MediaSettings, ModelsSettings
from serve_app.models import pipelines
from serve_app.models.crew import crew_of
from serve_app.models.lifecycle import CancelToken
from serve_app.models.party import Parties, address_of
from serve_app.models.party_member import assist
from serve_app.models.replica import ModelReplica
from serve_app.models.studio import Painter, open_studio
from serve_app.models.tap import UNWATCHED, ProgressCallback, Watch
from tests.fakes_models import RememberingSink, render_call
from tests.families import BY_NAME, STEPS
from workflows.deadline import Deadline
from workflows.errors import DeadlineExceeded, Overloaded, RenderCancelled
from workflows.media.frames import UInt8Array
from workflows.ports import Party
from workflows.store import Store

WAN = BY_NAME["wan_t2v"]
TOLERANCE = 1
"""Of 255, as between the processes of a crew."""
MEET_S = 10.0


@dataclass(kw_only=True, eq=False)
class Room:
    """What a replica of an elastic card has on its GPU thread."""

    parties: Parties
    studio: Mapping[Task, Painter]

    def render(self, watch: Watch = UNWATCHED, callback: ProgressCallback | None = None) -> UInt8Array:
        return self.studio[WAN.task].generate(WAN.take(), progress_callback=callback or quiet, watch=watch)


def quiet(step: int, total_steps_count: int, current_timestep: float) -> None:
    """Hears nothing."""


def fail_once(room: Room) -> list[int]:
    """In the next step that is made in company; the list says when it was."""
    (pipe,), failed = room.parties.together.pipes, []

    def fail(*_: object) -> None:
        if not failed and dist.is_initialized():
            failed.append(1)
            raise RuntimeError("out of something")

    pipe.transformer.register_forward_pre_hook(fail)
    return failed


def furnish(card: ModelCard, *, device: str = "cpu", stall_s: float = 60) -> Room:
    parties = crew_of(card, device, stall_s=stall_s)
    assert isinstance(parties, Parties)
    parties.meet_s = MEET_S
    return Room(parties=parties, studio=parties.joined(open_studio(card, device, parties.keeping(pipelines.load))))


def help_out(link: Connection, card: ModelCard, device: str, stall_s: float) -> None:
    """Another replica's process: helps each party that it is told, or renders alone, until it hears nothing more."""
    torch.set_num_threads(1)
    room = furnish(card, device=device, stall_s=stall_s)
    link.send(os.getpid())
    while (asked := link.recv()) is not None:
        if asked == "alone":
            link.send(room.render())
        elif asked == "fail":
            fail_once(room)
        else:
            assist(asked, room.studio, room.parties, cancel=CancelToken(), beat=lambda: None)
            link.send(room.parties.problem())


@dataclass(kw_only=True, eq=False)
class Neighbour:
    """The other replica, seen from here."""

    process: BaseProcess
    link: Connection
    pid: int
    told: list[int] = field(default_factory=list)

    def invite(self) -> Party:
        party = Party(id=uuid.uuid4().hex, size=2, rank=0)
        self.link.send(replace(party, rank=1))
        return party

    def is_home(self) -> bool:
        """Whether it has left its party within a while, and is well."""
        return bool(self.link.poll(40)) and self.link.recv() == ""

    def alone(self) -> UInt8Array:
        self.link.send("alone")
        frames: UInt8Array = self.link.recv()
        return frames


def move_in(card: ModelCard, *, device: str = "cpu", stall_s: float = 60) -> Neighbour:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=help_out, args=(there, card, device, stall_s), daemon=True)
    process.start()
    there.close()
    return Neighbour(process=process, link=here, pid=here.recv())


def move_out(neighbour: Neighbour) -> None:
    neighbour.process.kill()
    neighbour.process.join()


@pytest.fixture(scope="module")
def card(checkpoints: Path) -> ModelCard:
    return WAN.card(checkpoints, elastic={"ulysses": 2})


@pytest.fixture(scope="module")
def room(card: ModelCard) -> Iterator[Room]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield furnish(card)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def neighbour(card: ModelCard) -> Iterator[Neighbour]:
    neighbour = move_in(card)
    yield neighbour
    move_out(neighbour)


def same(one: UInt8Array, other: UInt8Array) -> bool:
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= TOLERANCE


def hooks_of(room: Room) -> list[str]:
    """Everything that diffusers has hung on a denoiser."""
    (pipe,) = room.parties.together.pipes
    registries = [vars(part).get("_diffusers_hook") for part in pipe.transformer.modules()]
    return [name for registry in registries if registry is not None for name in registry.hooks]


def is_alone(room: Room) -> bool:
    (pipe,) = room.parties.together.pipes
    processors = [part.processor for part in pipe.transformer.modules() if "processor" in vars(part)]
    return (not dist.is_initialized() and hooks_of(room) == [] and pipe.transformer._parallel_config is None
            and len(processors) > 0 and all(processor._parallel_config is None for processor in processors))


def test_two_replicas_make_one_call_and_are_as_before(room: Room, neighbour: Neighbour) -> None:
    before, theirs = room.render(), neighbour.alone()
    told: list[int] = []
    gpus: list[int] = []
    tokens: set[int] = set()
    (pipe,) = room.parties.together.pipes
    hook = pipe.transformer.blocks[1].register_forward_pre_hook(lambda _, args: tokens.add(args[0].shape[1]))
    shared = room.render(Watch(party=neighbour.invite(), shared=gpus.append), lambda step, *_: told.append(step))
    hook.remove()
    assert tokens == {4}, "half of the eight tokens were made here"
    assert gpus == [2]
    assert told == [*range(STEPS)]
    assert before.std() > 10
    assert same(shared, before)
    assert neighbour.is_home()
    assert is_alone(room)
    assert np.array_equal(room.render(), before)
    assert np.array_equal(neighbour.alone(), theirs)


@pytest.mark.parametrize("how", ["cancel", pytest.param("deadline", marks=pytest.mark.slow)])
def test_a_stop_reaches_both_and_both_are_ready_for_the_next_party(how: str, room: Room, neighbour: Neighbour) -> None:
    token, told = CancelToken(), []

    def hear(step: int, total_steps_count: int, current_timestep: float) -> None:
        told.append(step)
        if step == 1:
            token.set()

    party = neighbour.invite()
    watch = (Watch(party=party, cancel=token) if how == "cancel"
             else Watch(party=party, deadline=Deadline.after(0, lambda: float(len(told) > 1))))
    with pytest.raises(RenderCancelled if how == "cancel" else DeadlineExceeded):
        room.render(watch, hear)
    assert told == [0, 1]
    assert neighbour.is_home()
    assert is_alone(room)
    gpus: list[int] = []
    room.render(Watch(party=neighbour.invite(), shared=gpus.append))
    assert gpus == [2]
    assert neighbour.is_home()


def test_who_does_not_come_is_not_waited_for_and_who_comes_late_goes_home(room: Room) -> None:
    hasty = Parties(Elastic(ulysses=2), "cpu", stall_s=60, meet_s=0.3)
    hasty.together.pipes = room.parties.together.pipes
    painters = hasty.joined({WAN.task: room.studio[WAN.task].alone})  # type: ignore[attr-defined]
    gpus: list[int] = []
    party = Party(id=uuid.uuid4().hex, size=2, rank=0)
    watch = Watch(party=party, shared=gpus.append)
    began_s = time.monotonic()
    alone = painters[WAN.task].generate(WAN.take(), progress_callback=quiet, watch=watch)
    assert gpus == []
    assert time.monotonic() - began_s < 30
    hasty.meet_s, again_s = 60, time.monotonic()
    assert np.array_equal(painters[WAN.task].generate(WAN.take(), progress_callback=quiet, watch=watch), alone)
    assert time.monotonic() - again_s < 30, "a second try does not wait again"
    hasty.meet_s, late_s = 0.3, time.monotonic()
    assist(replace(party, rank=1), painters, hasty, cancel=CancelToken(), beat=quiet_beat)
    assert 0.3 <= time.monotonic() - late_s < 30, "nobody is there any more"
    hasty.meet_s, cancel = 60, CancelToken()
    threading.Timer(0.2, cancel.set).start()
    assist(replace(party, rank=1), painters, hasty, cancel=cancel, beat=quiet_beat)
    assert time.monotonic() - late_s < 50, "it was told that nobody wants it"


def quiet_beat() -> None:
    """Nobody listens."""


@pytest.mark.slow
def test_a_stranger_at_the_door_is_no_helper(room: Room, neighbour: Neighbour) -> None:
    party, gpus = neighbour.invite(), []
    inviting = threading.Thread(target=lambda: room.render(Watch(party=party, shared=gpus.append)))
    with socket.socket(socket.AF_UNIX) as stranger:
        inviting.start()
        until(lambda: stranger.connect_ex(address_of(party)) == 0 or bool(gpus) or not inviting.is_alive())
        inviting.join()
    assert gpus == [2]
    assert neighbour.is_home()


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["helper", "helped"])
def test_an_error_of_one_ends_it_for_both_and_the_call_is_made_alone(rank: str, room: Room, neighbour: Neighbour,
                                                                    ) -> None:
    before, failed = room.render(), []
    if rank == "helper":
        neighbour.link.send("fail")
    else:
        failed = fail_once(room)
    gpus: list[int] = []
    after = room.render(Watch(party=neighbour.invite(), shared=gpus.append))
    assert failed == [1] * (rank == "helped")
    assert gpus == []
    assert np.array_equal(after, before)
    assert neighbour.is_home()
    assert is_alone(room)


@pytest.mark.slow
def test_a_helper_that_is_killed_gives_the_call_back_and_the_replica_stays_well(card: ModelCard, room: Room) -> None:
    before, victim = room.render(), move_in(card)
    try:
        with pytest.raises(Overloaded, match="helped with this call is gone"):
            room.render(Watch(party=victim.invite()),
                        lambda step, *_: os.kill(victim.pid, signal.SIGKILL) if step == 1 else None)
    finally:
        move_out(victim)
    assert room.parties.problem() == ""
    assert is_alone(room)
    assert np.array_equal(room.render(), before)


LED = """
import sys, time
from configs.model_card import ModelCard
from serve_app.models.tap import Watch
from tests.unit.models.test_party import furnish
from workflows.ports import Party
room = furnish(ModelCard.model_validate_json(sys.argv[1]))
print("ready", flush=True)
room.render(Watch(party=Party(id=sys.argv[2], size=2, rank=0)),
            lambda step, *_: (print(step, flush=True), time.sleep(600 if step == 1 else 0)))
"""


@pytest.mark.slow
def test_a_helper_goes_home_when_the_helped_one_is_killed(card: ModelCard, neighbour: Neighbour) -> None:
    before = neighbour.alone()
    party = Party(id=uuid.uuid4().hex, size=2, rank=0)
    with subprocess.Popen([sys.executable, "-c", LED, card.model_dump_json(), party.id], stdout=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}) as led:
        assert led.stdout is not None
        assert led.stdout.readline() == b"ready\n"
        neighbour.link.send(replace(party, rank=1))
        assert [led.stdout.readline() for _ in range(2)] == [b"0\n", b"1\n"]
        led.kill()
    assert neighbour.is_home()
    assert np.array_equal(neighbour.alone(), before)


@pytest.mark.slow
def test_a_helper_that_hangs_costs_the_call_its_company(card: ModelCard) -> None:
    room, stuck = furnish(card, stall_s=3), move_in(card, stall_s=3)
    gpus: list[int] = []
    try:
        before = room.render()
        after = room.render(Watch(party=stuck.invite(), shared=gpus.append),
                            lambda step, *_: os.kill(stuck.pid, signal.SIGSTOP) if step == 1 else None)
    finally:
        move_out(stuck)
    assert gpus == []
    assert np.array_equal(after, before)


async def test_a_replica_tells_how_many_made_its_clip(card: ModelCard, tmp_path: Path, neighbour: Neighbour) -> None:
    store = Store(str(tmp_path))
    replica = ModelReplica(card, ModelsSettings(torch_threads=1), MediaSettings(), store, RememberingSink(), 0)
    try:
        result = await replica.clip(render_call(card, steps=STEPS, party=neighbour.invite()))
        assert neighbour.is_home()
        alone = await replica.clip(render_call(card, steps=STEPS, key="b" * 32))
        await replica.assist(render_call(card, steps=STEPS))  # of no party: nothing to do
    finally:
        replica.close()
    assert (result.gpus, alone.gpus) == (2, 1)
    assert result.seconds["lent"] == pytest.approx(result.seconds["diffusion"] + result.seconds["decode"])
    manifests = [(store.manifest(made.artifact.key) or {})["made"] for made in (result, alone)]
    assert [manifest["device"] for manifest in manifests] == ["2 x cpu", "cpu"]  # type: ignore[index, call-overload]
    assert "party" not in manifests[0]["call"]  # type: ignore[index, call-overload, operator]
    assert "lent" not in alone.seconds


def until(good: Callable[[], object], limit_s: float = 30) -> None:
    end_s = time.monotonic() + limit_s
    while not good():
        assert time.monotonic() < end_s
        time.sleep(0.02)
