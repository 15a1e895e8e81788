"""Files that are no diffusers checkpoint: an IP-Adapter's, and a picture model's. And the adapter on its pipeline.

Safetensors only, as everywhere: an adapter's weights, and a picture encoder's configuration and weights. Loads torch
only where an adapter is put on a pipeline.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from huggingface_hub import HfApi

from configs.chat_card import AnyCard
from configs.model_card import ModelCard
from configs.references import IpAdapter
from serve_app.models import weights
from serve_app.models.repo import local_path, refused

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

PICTURE_MODEL = ("config.json", "preprocessor_config.json", "model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What a card reads of a repo that is no diffusers checkpoint."""

    repo: str
    revision: str
    files: tuple[str, ...]
    field: str
    """Of the card, that names the repo."""


def adapter_of(card: AnyCard) -> IpAdapter | None:
    """The card's adapter, if it has one."""
    part = card.references if isinstance(card, ModelCard) else None
    return part if isinstance(part, IpAdapter) else None


def extra_of(card: AnyCard) -> Extra | None:
    """An adapter's files, or those of a card that is a picture model itself; None: all is in the checkpoint."""
    adapter = adapter_of(card)
    if adapter is not None:
        return Extra(repo=adapter.repo, revision=adapter.revision, files=adapter.files, field="references.repo")
    if card.loader == "embedding":
        return Extra(repo=card.repo, revision=card.revision, files=PICTURE_MODEL, field="repo")
    return None


# -- what is here ----------------------------------------------------------------------------------------------------


def find(card: AnyCard, extra: Extra, *, cache_dir: Path | None = None) -> Path | None:
    """The directory that holds the files; None when it is a hub's and not (wholly) here.

    Asks no network. Raises InvalidDocument for a local path that is missing or lacks a file.
    """
    directory = local_path(card, extra.repo, extra.field)
    if directory is None:
        snapshot = weights.snapshot(_as_repo(card, extra), cache_dir)
        return snapshot if snapshot is not None and not gaps(snapshot, extra) else None
    if found := gaps(directory, extra):
        raise refused(card, extra.field, f"{directory} lacks what the card names: {'; '.join(found)}")
    return directory


def is_here(card: AnyCard) -> bool:
    """Whether nothing of these files is to be fetched; a card without any lacks nothing."""
    extra = extra_of(card)
    return extra is None or find(card, extra) is not None


def require(card: AnyCard) -> Path | None:
    """As `find`, but raises InvalidDocument that names the command which brings them here; None: there are none."""
    extra = extra_of(card)
    found = None if extra is None else find(card, extra)
    if extra is None or found is not None:
        return found
    raise refused(card, extra.field, f"the files of {extra.repo} are not on this machine: run `reelray models pull "
                                     f"{card.name}` first, or set models.auto_download=true. {by_hand(extra)}")


def by_hand(extra: Extra) -> str:
    """The way for machines without a network; the repo may hold far more than these files."""
    revision = f" --revision {extra.revision}" if extra.revision else ""
    inside = "under `references` in" if extra.field.startswith("references") else "in"
    return (f"By hand: on a machine with network run `hf download {extra.repo} {' '.join(extra.files)}{revision} "
            f"--local-dir DIR`, bring DIR here and set `repo: DIR` {inside} a card of your own")


def gaps(directory: Path, extra: Extra) -> tuple[str, ...]:
    """What of the files is missing or cut short in `directory`; empty when all are whole."""
    missing = [path for path in extra.files if not (directory / path).is_file()]
    short = [path for path in extra.files if path not in missing and path.endswith(".safetensors")
             and not weights.whole(directory / path)]
    return (*(f"{path}: missing" for path in missing), *(f"{path}: cut short" for path in short))


# -- bringing it here ------------------------------------------------------------------------------------------------


def pull(card: AnyCard, extra: Extra, *, say: Callable[[str], None],
         free: weights.FreeBytes = weights.free_bytes, cache_dir: Path | None = None) -> weights.Pulled:
    """Bring the files into the hub's cache, as `weights.pull` does with a checkpoint's."""
    if local_path(card, extra.repo, extra.field) is not None:
        raise refused(card, extra.field, f"{extra.repo} is on this machine already; there is nothing to pull")
    pulled = weights.fetch(_as_repo(card, extra), lambda repo, _: _listing(repo, extra), say=say, free=free,
                           cache_dir=cache_dir, way=by_hand(extra))
    if found := gaps(pulled.directory, extra):
        raise refused(card, extra.field, f"{extra.repo} lacks what the card names: {'; '.join(found)}")
    return pulled


def ensure(card: AnyCard, *, say: Callable[[str], None]) -> None:
    """Before loading: files that are not here are brought here. Raises InvalidDocument as `pull` does."""
    extra = extra_of(card)
    if extra is not None and not is_here(card):
        pull(card, extra, say=say)


def _listing(repo: AnyCard, extra: Extra) -> tuple[str, tuple[weights.RemoteFile, ...]]:
    info = HfApi().model_info(repo.repo, revision=repo.revision or None, files_metadata=True)
    found = {file.rfilename: file for file in info.siblings or ()}
    if lacking := [path for path in extra.files if path not in found]:
        near = [path for path in found if path.endswith(PurePosixPath(lacking[0]).suffix)]
        raise refused(repo, extra.field, f"{repo.repo} has no {lacking[0]}",
                      ", ".join(difflib.get_close_matches(lacking[0], near, n=1)))
    files = [found[path] for path in extra.files]
    return str(info.sha), tuple(weights.RemoteFile(
        path=file.rfilename, size_bytes=file.size or 0, sha256=file.lfs.sha256 if file.lfs is not None else "")
        for file in files)


def _as_repo(card: AnyCard, extra: Extra) -> AnyCard:
    """The card with this repo in place of its own: what `weights` knows how to look for and to fetch."""
    return card.model_copy(update={"repo": extra.repo, "revision": extra.revision})


# -- on the pipeline -------------------------------------------------------------------------------------------------


def with_adapter(pipe: DiffusionPipeline, card: ModelCard, dtypes: Mapping[str, torch.dtype]) -> DiffusionPipeline:
    """The pipeline with the card's adapter on it, in the card's dtypes; a card without one changes nothing.

    Raises InvalidDocument when its files are missing or damaged, or do not fit the pipeline.
    """
    adapter, where = adapter_of(card), require(card)
    if adapter is None or where is None:
        return pipe
    from diffusers.loaders import IPAdapterMixin
    from transformers import CLIPImageProcessorPil

    if not isinstance(pipe, IPAdapterMixin):
        raise refused(card, "references.kind", f"{type(pipe).__name__} takes no IP-Adapter; pipelines of Stable "
                                               "Diffusion and Stable Diffusion XL do")
    if pipe.image_encoder is None and not adapter.image_encoder:
        raise refused(card, "references.image_encoder", "the checkpoint has no picture encoder; name the folder of one")
    weight = PurePosixPath(adapter.weight_file)
    has_own_extractor = pipe.feature_extractor is not None
    try:
        # The leading dot makes the folder one of the repo, not one beside the weights.
        pipe.load_ip_adapter(str(where), subfolder=str(weight.parent), weight_name=weight.name, local_files_only=True,
                             image_encoder_folder=f"./{adapter.image_encoder}" if adapter.image_encoder else None)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise refused(card, "references.weight_file", f"{where / weight} does not fit {card.repo}: "
                                                      f"{type(error).__name__}: {str(error).strip()[:200]}") from error
    dtype = dtypes[card.dtypes.get("image_encoder", card.dtype)]
    pipe.image_encoder.to(pipe.device, dtype).eval()
    if not has_own_extractor:
        # The same everywhere: which of transformers' processors is the default depends on what is installed.
        side_px = pipe.image_encoder.config.image_size
        pipe.register_modules(feature_extractor=CLIPImageProcessorPil(size=side_px, crop_size=side_px))
    return pipe
