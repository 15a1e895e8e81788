"""How many GPUs the models take, and whether a cluster has them. Imports no ray."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from configs.chat_card import AnyCard
from configs.memory import share_of
from configs.model_card import ModelCard
from configs.settings import Settings
from configs.sharing import gpus_taken
from workflows.errors import ImpossibleResources

OPERATOR = re.compile(r"!|in\(")
"""Beginnings of what Ray's label selectors understand beside a plain value."""


def check_resources(settings: Settings, cards: Iterable[AnyCard], cluster: Mapping[str, float]) -> None:
    """Refuse what could never be scheduled, naming what the cluster has."""
    have = max_gpus(settings, cluster)
    wanted: list[float] = []
    largest = 0.0
    for card in cards:
        replicas = settings.models.replica_of(card.name)
        gpus = gpus_of(card, settings, cluster)
        # Those of cards that start without any come and go, if need be one card after the other.
        wanted += [gpus] * replicas.at_start
        largest = max(largest, gpus)
        if gpus > 1 and gpus != int(gpus):
            raise ImpossibleResources(
                problem=f"card {card.name} asks for {gpus:g} GPUs per replica; above 1 only whole numbers; "
                f"nearest {int(gpus)} or {int(gpus) + 1}")
        own = card.parallel.degree if isinstance(card, ModelCard) and card.parallel else 0
        if isinstance(card, ModelCard) and card.elastic is not None:
            own = 1
        if own and gpus not in (0, own):
            where = ("resources.num_gpus: " if replicas.num_gpus is None
                     else f"--set models.by_card.{card.name}.num_gpus=")
            raise ImpossibleResources(
                problem=f"card {card.name} asks for {gpus:g} GPUs per replica, but its "
                        + (f"`parallel` shares a call out among {own}" if own > 1 else "`elastic` lends whole GPUs")
                        + f"; nearest valid: {where}{own}")
    if gpus_taken(wanted) > have or largest > have:
        wanted = wanted if gpus_taken(wanted) > have else [largest]
        split = "" if sum(wanted) > have else f", and no part may lie on two of them, so {gpus_taken(wanted):g}"
        shares = ", ".join(f"{c.name} {settings.models.replica_of(c.name).at_start} x {gpus_of(c, settings, cluster):g}"
                           for c in cards)
        limit = "has" if settings.ray.max_gpus is None else "can have (ray.max_gpus)"
        # More GPUs in Ray's book than there are is no help to models that insist on a real one.
        logical = "" if settings.models.device == "cuda" else ", or give it logical GPUs with --set ray.num_gpus=N"
        raise ImpossibleResources(
            problem=f"the models need {sum(wanted):g} GPUs ({shares}){split} but the cluster {limit} {have:g}; lower "
            "models.default_replicas.replicas or num_gpus, name one card for several tasks, or `placeholder` for a "
            f"task that no film of yours needs (--set models.text_to_image=placeholder){logical}")


def check_labels(settings: Settings, nodes: Iterable[Mapping[str, Any]]) -> None:
    """Refuse labels that no machine has: Serve would wait for one for ever. `nodes` as `ray.nodes()` gives them.

    Machines that a growing cluster is still to get cannot be asked, so replicas' labels are checked where it does not
    grow, and those of Director, HTTP and media work always: the machines that they need must be there from the start.
    """
    have = [dict(node.get("Labels") or {}) for node in nodes if node["Alive"]]
    asked = {"ray.service_labels": settings.ray.service_labels}
    if settings.ray.max_gpus is None:
        asked["models.default_replicas.labels"] = settings.models.default_replicas.labels
        asked |= {f"models.by_card.{card}.labels": own.labels for card, own in settings.models.by_card.items()}
    for setting, labels in asked.items():
        plain = {name: value for name, value in labels.items() if not OPERATOR.match(value)}
        if not any(plain.items() <= own.items() for own in have):
            raise ImpossibleResources(problem=f"{setting}: no machine of the cluster has the labels {plain}; start one "
                                      "with `ray start ... --labels=NAME=VALUE`, or leave the setting out")


def max_gpus(settings: Settings, cluster: Mapping[str, float]) -> float:
    """GPUs that the cluster has, or can have."""
    return max(cluster.get("GPU", 0.0), settings.ray.max_gpus or 0.0)


def gpus_of(card: AnyCard, settings: Settings, cluster: Mapping[str, float]) -> float:
    """GPUs per replica; none where `device: auto` meets a cluster without GPUs."""
    if settings.models.device == "cpu" or (settings.models.device == "auto" and not max_gpus(settings, cluster)):
        return settings.models.replica_of(card.name).num_gpus or 0.0
    return share_of(card, settings.models).gpus


def told_shares(settings: Settings, cards: Iterable[AnyCard], cluster: Mapping[str, float]) -> tuple[str, ...]:
    """One line per card whose share of a GPU nobody wrote down: how much, and why."""
    return tuple(f"{card.name}: {share_of(card, settings.models)}" for card in cards
                 if card.resources.num_gpus is None and settings.models.replica_of(card.name).num_gpus is None
                 and gpus_of(card, settings, cluster) > 0)
