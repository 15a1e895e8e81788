"""Serve's request router for model replicas: `workflows.placement` decides, Serve sends.

Serve's own router draws two replicas and takes the less busy one, so of two shots both may go to one replica while
another is idle; and it asks replicas how busy they are, where one Director knows it: the calls are its own. Serve makes
one router per handle, in the process that calls. The base class and its hooks are public, in alpha.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from workflows.placement import Candidate, Placement, Wanted
from workflows.ports import RenderCall
from workflows.types import NodeCall

ELSEWHERE_S = 60.0
"""How long a call waits for a replica that it need not avoid: there may be none just now."""


class PlacementRouter(RequestRouter):
    """Sends each call to the replica that `Placement` names."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Serve once; there are no arguments."""
        self._placement = Placement(draw=random.random)

    async def choose_replicas(self, candidate_replicas: list[RunningReplica],
                              pending_request: PendingRequest | None = None) -> list[list[RunningReplica]]:
        """The one replica to try, or none for now; Serve asks again after a pause when it has no room."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        wanted = wanted_of(pending_request)
        candidates = [self._candidate(replica) for replica in candidate_replicas]
        chosen = self._placement.choose(wanted, candidates)
        if chosen is None and time.time() - pending_request.created_at > ELSEWHERE_S:
            chosen = self._placement.choose(replace(wanted, avoid=()), candidates)
        return [[replica for replica in candidate_replicas
                 if chosen is not None and replica.replica_id.unique_id == chosen.name]]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        """The replica has taken it."""
        replica = self.curr_replicas.get(replica_id)
        if replica is not None:
            self._placement.sent(wanted_of(pending_request), self._candidate(replica))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """It is over there: done, failed, cancelled or refused."""
        self._placement.over(internal_request_id, replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Some have come or gone."""
        super().update_replicas(replicas)
        self._placement.keep([self._candidate(replica) for replica in replicas])

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """It could not be reached; it may be dying, or its machine is."""
        super().on_replica_actor_unavailable(replica_id)
        self._placement.doubt(replica_id.unique_id)

    def _candidate(self, replica: RunningReplica) -> Candidate:
        return Candidate(name=replica.replica_id.unique_id, machine=replica.node_id, room=replica.max_ongoing_requests,
                         calls=self.replica_queue_len_cache.get(replica.replica_id) or 0)


def wanted_of(pending: PendingRequest) -> Wanted:
    """What a call's place depends on."""
    id = pending.metadata.internal_request_id
    match pending.args:
        case [RenderCall(party=party) as call, *_]:
            # Who helps has the key of what is made, and must not be sent to who makes it.
            helps = party is not None and party.rank > 0
            return Wanted(id=id, key="" if helps else call.key, avoid=call.avoid, seat=call.seat,
                          party="" if party is None else party.id)
        case [NodeCall() as call, *_]:
            return Wanted(id=id, key=call.key, seat=call.seats[0] if call.seats else None)
        case _:
            return Wanted(id=id)
