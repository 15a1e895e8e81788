"""What Serve's controller asks how many replicas a model should have. Knows Ray, no database.

Serve calls the policy ten times a second, in its own event loop, so it must not wait: it asks the ProgressActor beside
that and decides by what was last said. As long as nothing fresh is known, the number of replicas stays as it is. Where
GPUs are too few for all cards, how many there should be is said too, and done (`workflows.division`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import ray
from ray.serve.config import AggregationFunction, AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from actors.progress import ACTOR_NAME
from configs.replicas import ScalingSettings
from configs.settings import Settings
from workflows.scaling import WANTED, Backlog, Rule, decide

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 5.0
STALE_LOOKS = 10
"""What is older than so many looks is not decided by: whoever counts is away."""
LOOK_BACK_S = 12.0
"""Serve counts the calls that wait every fifth part of it, and hears of them every 10 s."""
TOO_MANY_SINCE = "too_many_since_s"


def autoscaling_of(card: str, settings: Settings) -> AutoscalingConfig:
    """The deployment option for a card with `min_replicas`. All patience is the policy's, so Serve's delays are 0.

    With no replica, Serve asks no policy but starts one as long as it believes that calls wait, and by the mean of half
    a minute it believes so long after they are done; such a replica takes the GPU from the card that is to have it.
    """
    replicas = settings.models.replica_of(card)
    return AutoscalingConfig(
        min_replicas=replicas.at_start, max_replicas=replicas.replicas, upscale_delay_s=0, downscale_delay_s=0,
        downscale_to_zero_delay_s=0, look_back_period_s=LOOK_BACK_S, aggregation_function=AggregationFunction.MIN,
        policy=AutoscalingPolicy(policy_function="serve_app.scaling_policy:BacklogPolicy", policy_kwargs={
            "card": card, "namespace": settings.ray.namespace,
            "scaling": settings.models.scaling.model_dump()}))


async def ask_board(card: str, namespace: str) -> tuple[float, Mapping[str, float]]:
    """See `ProgressBoard.backlog`; raises whatever Ray raises."""
    board = ray.get_actor(ACTOR_NAME, namespace=namespace)
    answer: tuple[float, Mapping[str, float]] = await asyncio.wait_for(board.backlog.remote(card), ASK_TIMEOUT_S)
    return answer


class BacklogPolicy:
    """One per deployment, made by Serve from `policy_kwargs`."""

    def __init__(self, card: str, namespace: str, scaling: Mapping[str, float], *,
                 ask: Callable[[str, str], Awaitable[tuple[float, Mapping[str, float]]]] = ask_board,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """`card`: whose work counts; `scaling`: the numbers of `ScalingSettings`; `ask` and `clock` are a test's."""
        self._ask_board = ask
        self._clock = clock
        self._card = card
        self._namespace = namespace
        self._scaling = ScalingSettings.model_validate(scaling)
        self._backlog: Backlog | None = None
        self._wanted: int | None = None
        self._told_s = 0.0
        self._asked_s = -math.inf
        self._asking: asyncio.Task[None] | None = None

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Replicas there should be, and what Serve is to keep for the next call."""
        at_s = self._clock()
        if at_s - self._asked_s >= self._scaling.look_s and (self._asking is None or self._asking.done()):
            self._asked_s = at_s
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        if self._backlog is None or at_s - self._told_s > self._scaling.look_s * STALE_LOOKS:
            return context.target_num_replicas, {}
        if self._wanted is not None:
            least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
            return min(max(self._wanted, least), most), {}
        rule = Rule(least=context.capacity_adjusted_min_replicas, most=context.capacity_adjusted_max_replicas,
                    finish_within_s=self._scaling.finish_within_s, idle_s=self._scaling.idle_s)
        decision = decide(self._backlog, rule, now=context.target_num_replicas,
                          too_many_since_s=context.policy_state.get(TOO_MANY_SINCE), at_s=at_s)
        return decision.replicas, {TOO_MANY_SINCE: decision.too_many_since_s}

    async def _ask(self) -> None:
        try:
            age_s, numbers = await self._ask_board(self._card, self._namespace)
        except Exception as error:  # noqa: BLE001 - a board that is away is asked again at the next look
            log.warning("the work for %s is not known: %s: %s", self._card, type(error).__name__, error)
            return
        if numbers:
            self._backlog = Backlog.from_json(numbers)
            self._wanted = int(numbers[WANTED]) if WANTED in numbers else None
            self._told_s = self._clock() - age_s
