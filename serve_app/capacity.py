"""How many GPUs the models take, and whether a cluster has them. Imports no ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from configs.model_card import ModelCard
from configs.settings import Settings
from workflows.errors import ImpossibleResources


def check_resources(settings: Settings, cards: Iterable[ModelCard], cluster: Mapping[str, float]) -> None:
    """Refuse what could never be scheduled, naming what the cluster has."""
    have = cluster.get("GPU", 0.0)
    wanted = 0.0
    for card in cards:
        replicas = settings.models.replica_of(card.name)
        gpus = gpus_of(card, settings, cluster)
        wanted += gpus * replicas.replicas
        if gpus > 1 and gpus != int(gpus):
            raise ImpossibleResources(
                problem=f"card {card.name} asks for {gpus:g} GPUs per replica; above 1 only whole numbers; "
                f"nearest {int(gpus)} or {int(gpus) + 1}")
        if card.parallel is not None and gpus not in (0, card.parallel.degree):
            raise ImpossibleResources(
                problem=f"card {card.name} asks for {gpus:g} GPUs per replica, but its `parallel` shares a call out "
                f"among {card.parallel.degree}; nearest valid: resources.num_gpus: {card.parallel.degree}")
    if wanted > have:
        shares = ", ".join(f"{c.name} {settings.models.replica_of(c.name).replicas} x {gpus_of(c, settings, cluster):g}"
                           for c in cards)
        # More GPUs in Ray's book than there are is no help to models that insist on a real one.
        logical = "" if settings.models.device == "cuda" else ", or give it logical GPUs with --set ray.num_gpus=N"
        raise ImpossibleResources(
            problem=f"the models need {wanted:g} GPUs ({shares}) but the cluster has {have:g}; lower "
            "models.default_replicas.replicas or num_gpus, name one card for several tasks, or `placeholder` for a "
            f"task that no film of yours needs (--set models.text_to_image=placeholder){logical}")


def gpus_of(card: ModelCard, settings: Settings, cluster: Mapping[str, float]) -> float:
    """GPUs per replica: the setting, else the card's number; none where `device: auto` meets a cluster without GPUs."""
    asked = settings.models.replica_of(card.name).num_gpus
    if settings.models.device == "cpu" or (settings.models.device == "auto" and not cluster.get("GPU")):
        return asked or 0.0
    return card.resources.num_gpus if asked is None else asked
