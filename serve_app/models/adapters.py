"""An IP-Adapter's files on this machine, and the adapter on its pipeline. Loads torch only when it is put there.

Safetensors only, as everywhere: the adapter's weights, and the picture encoder's configuration and weights.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from huggingface_hub import HfApi

from configs.model_card import ModelCard
from configs.references import IpAdapter
from serve_app.models import weights
from serve_app.models.repo import local_path, refused

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

FIELD = "references.repo"


def adapter_of(card: ModelCard) -> IpAdapter | None:
    """The card's adapter, if it has one."""
    return card.references if isinstance(card.references, IpAdapter) else None


# -- what is here ----------------------------------------------------------------------------------------------------


def find(card: ModelCard, adapter: IpAdapter, *, cache_dir: Path | None = None) -> Path | None:
    """The directory that holds the adapter's files; None when it is a hub's and not (wholly) here.

    Asks no network. Raises InvalidDocument for a local path that is missing or lacks a file.
    """
    directory = local_path(card, adapter.repo, FIELD)
    if directory is None:
        snapshot = weights.snapshot(_as_repo(card, adapter), cache_dir)
        return snapshot if snapshot is not None and not gaps(snapshot, adapter) else None
    if found := gaps(directory, adapter):
        raise refused(card, FIELD, f"{directory} lacks what the card names: {'; '.join(found)}")
    return directory


def require(card: ModelCard) -> Path | None:
    """As `find`, but raises InvalidDocument that names the command which brings the files here; None: no adapter."""
    adapter = adapter_of(card)
    found = None if adapter is None else find(card, adapter)
    if adapter is None or found is not None:
        return found
    revision = f" --revision {adapter.revision}" if adapter.revision else ""
    raise refused(card, FIELD, f"the adapter's files of {adapter.repo} are not on this machine: run `reelray models "
                               f"pull {card.name}` first. By hand: on a machine with network run `hf download "
                               f"{adapter.repo} {' '.join(adapter.files)}{revision} --local-dir DIR`, bring DIR here "
                               "and set `repo: DIR` under `references` in a card of your own")


def is_here(card: ModelCard) -> bool:
    """Whether nothing of the card's adapter is to be fetched; a card without one lacks nothing."""
    adapter = adapter_of(card)
    return adapter is None or find(card, adapter) is not None


def gaps(directory: Path, adapter: IpAdapter) -> tuple[str, ...]:
    """What of the adapter is missing or cut short in `directory`; empty when it is whole."""
    missing = [path for path in adapter.files if not (directory / path).is_file()]
    short = [path for path in adapter.files if path not in missing and path.endswith(".safetensors")
             and not weights.whole(directory / path)]
    return (*(f"{path}: missing" for path in missing), *(f"{path}: cut short" for path in short))


# -- bringing it here ------------------------------------------------------------------------------------------------


def pull(card: ModelCard, adapter: IpAdapter, *, say: Callable[[str], None],
         free: weights.FreeBytes = weights.free_bytes, cache_dir: Path | None = None) -> weights.Pulled:
    """Bring the adapter's files into the hub's cache, as `weights.pull` does with a model's."""
    pulled = weights.fetch(_as_repo(card, adapter), lambda repo, _: _listing(repo, adapter), say=say, free=free,
                           cache_dir=cache_dir)
    if found := gaps(pulled.directory, adapter):
        raise refused(card, FIELD, f"{adapter.repo} lacks what the card names: {'; '.join(found)}")
    return pulled


def ensure(card: ModelCard, *, say: Callable[[str], None]) -> None:
    """Before loading: files that are not here are brought here. Raises InvalidDocument as `pull` does."""
    adapter = adapter_of(card)
    if adapter is not None and not is_here(card):
        pull(card, adapter, say=say)


def _listing(repo: ModelCard, adapter: IpAdapter) -> tuple[str, tuple[weights.RemoteFile, ...]]:
    info = HfApi().model_info(repo.repo, revision=repo.revision or None, files_metadata=True)
    found = {file.rfilename: file for file in info.siblings or ()}
    if lacking := [path for path in adapter.files if path not in found]:
        near = [path for path in found if path.endswith(PurePosixPath(lacking[0]).suffix)]
        raise refused(repo, "references.weight_file" if lacking[0] == adapter.weight_file
                      else "references.image_encoder", f"{repo.repo} has no {lacking[0]}",
                      ", ".join(difflib.get_close_matches(lacking[0], near, n=1)))
    files = [found[path] for path in adapter.files]
    return str(info.sha), tuple(weights.RemoteFile(
        path=file.rfilename, size_bytes=file.size or 0, sha256=file.lfs.sha256 if file.lfs is not None else "")
        for file in files)


def _as_repo(card: ModelCard, adapter: IpAdapter) -> ModelCard:
    """The card with the adapter's repo in place of its own: what `weights` knows how to look for and to fetch."""
    return card.model_copy(update={"repo": adapter.repo, "revision": adapter.revision})


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
