"""The weights of hub models on this machine: what a card needs of a repo, whether it is here, and bringing it here.

Only what the pipeline reads is taken: `model_index.json`, and of each component's folder its configuration and its
safetensors; of a language model or a tracker, which has no folders, the same at the top. Pickles (`.bin`, `.pt`,
`.ckpt`) never are. Knows no torch, so that commands that only look start fast.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from httpx2 import HTTPError
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from configs.chat_card import AnyCard
from configs.model_card import ModelCard
from serve_app.models.repo import index_of, is_flat, refused, resolve_repo

INDEX = "model_index.json"
TOKENIZER = "tokenizer.json"
CONFIGURATION = frozenset({".json", ".txt", ".model", ".jinja"})
"""What tokenizers, schedulers and models are configured by."""
TOP_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
"""What transformers reads of a language model; other files at the top hold the same weights in other shapes."""
WEIGHTS = re.compile(r"[\w-]+?(-\d{5}-of-\d{5})?(\.(?P<variant>[a-z0-9_]+))?(-\d{5}-of-\d{5})?\.safetensors")

FreeBytes = Callable[[Path], int]
"""Free space of the disk that holds a directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repo."""

    path: str
    size_bytes: int
    sha256: str = ""
    """Where the hub knows it (large files)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What a pull left behind."""

    directory: Path
    files: int
    size_bytes: int
    """Of all files."""
    fetched_bytes: int
    """Of those that were not here before, without `model_index.json`, which says what the others are."""
    checked: int
    """Files whose SHA-256 was compared with the hub's."""


Listing = Callable[[AnyCard, Path], tuple[str, tuple[RemoteFile, ...]]]
"""Of a card's repo, with the hub's cache at hand: the commit, and the files that are needed of it."""


def free_bytes(directory: Path) -> int:
    """Free space where `directory` is, or will be."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def has_weights(card: AnyCard) -> bool:
    """The card's model is files, on this machine or a hub."""
    return card.loader in ("diffusers", "transformers", "tracker")


# -- what a card needs -----------------------------------------------------------------------------------------------


def components(index: Mapping[str, object], card: ModelCard) -> tuple[str, ...]:
    """Folders that the pipeline reads, from its `model_index.json`. Raises InvalidDocument when it is none."""
    named = tuple(name for name, entry in index.items() if isinstance(entry, list) and entry and entry[0] is not None)
    if not named:
        raise refused(card, "repo", f"{card.repo}: its {INDEX} names no component, so it is no diffusers checkpoint")
    return named


def wanted(files: Iterable[RemoteFile], folders: Iterable[str], variant: str) -> tuple[RemoteFile, ...]:
    """The files of a repo that the pipeline reads; in a folder without the variant its plain weights."""
    everything, folders = tuple(files), frozenset(folders)
    has_variant = {_folder(file) for file in everything if variant and _variant_of(file) == variant}
    return tuple(file for file in everything
                 if file.path == INDEX
                 or (_folder(file) in folders and _is_read(file, variant if _folder(file) in has_variant else "")))


def wanted_at_top(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The files of a repo that a language model or a tracker reads."""
    return tuple(file for file in files if _folder(file) == "." and (
        PurePosixPath(file.path).suffix in CONFIGURATION or TOP_WEIGHTS.fullmatch(file.path)))


def _is_read(file: RemoteFile, variant: str) -> bool:
    suffix = PurePosixPath(file.path).suffix
    return suffix in CONFIGURATION or (suffix == ".safetensors" and _variant_of(file) == variant)


def _folder(file: RemoteFile) -> str:
    return str(PurePosixPath(file.path).parent)


def _variant_of(file: RemoteFile) -> str | None:
    """`fp16`, `` for plain weights, None for what is no weight file of a component."""
    match = WEIGHTS.fullmatch(PurePosixPath(file.path).name)
    return (match["variant"] or "") if match else None


# -- what is here ----------------------------------------------------------------------------------------------------


def find(card: AnyCard, *, cache_dir: Path | None = None) -> Path | None:
    """Where the card's checkpoint is on this machine; None when it is a hub's and not (wholly) here.

    Asks no network. Raises InvalidDocument for a local path that is missing.
    """
    where = resolve_repo(card)
    if isinstance(where, Path):
        return where
    here = snapshot(card, cache_dir)
    return here if here is not None and not gaps(here, card) else None


def require(card: AnyCard, *, cache_dir: Path | None = None) -> Path:
    """As `find`, but raises InvalidDocument that names the command which brings the weights here."""
    found = find(card, cache_dir=cache_dir)
    if found is not None:
        return found
    here = snapshot(card, cache_dir)
    missing = f" ({'; '.join(gaps(here, card)[:3])})" if here is not None else ""
    raise refused(card, "repo", f"the weights of {card.repo} are not on this machine{missing}: run `reelray models "
                                f"pull {card.name}` first, or set models.auto_download=true. " + by_hand(card))


def by_hand(card: AnyCard) -> str:
    """The way for machines without a network."""
    revision = f" --revision {card.revision}" if card.revision else ""
    return (f"By hand: on a machine with network run `hf download {card.repo}{revision} --local-dir DIR`, bring DIR "
            "here and set `repo: DIR` in a card of your own")


def gaps(directory: Path, card: AnyCard) -> tuple[str, ...]:
    """What of the checkpoint in `directory` is missing or cut short; empty when it is whole."""
    index = _json(directory / index_of(card))
    if not isinstance(index, dict):
        return (f"no readable {index_of(card)}",)
    if not isinstance(card, ModelCard):
        return tuple(_gaps_at_top(directory, has_words=True))
    if card.loader == "tracker":
        return tuple(_gaps_at_top(directory, has_words=card.finds_by == "text"))
    return tuple(gap for name in components(index, card) for gap in _folder_gaps(directory / name, card.variant))


def _folder_gaps(folder: Path, variant: str) -> Iterator[str]:
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not any(name.endswith(".json") for name in present):
        yield f"{folder.name}: no configuration"
        return
    shards = {name for index in present if index.endswith(".json") and ".safetensors.index" in index
              and (f".{variant}." in index) is bool(variant and _has(present, variant))
              for name in _shards(folder / index)}
    weights = {name for name in present if name.endswith(".safetensors")}
    yield from (f"{folder.name}/{name}: missing" for name in sorted(shards - weights))
    if not weights and not shards and _is_model(folder):
        yield f"{folder.name}: no safetensors"
    yield from (f"{folder.name}/{name}: cut short" for name in sorted(weights) if not whole(folder / name))


def _gaps_at_top(directory: Path, *, has_words: bool) -> Iterator[str]:
    present = {path.name for path in directory.iterdir()}
    if has_words and TOKENIZER not in present:
        yield f"no {TOKENIZER}"
    shards = _shards(directory / "model.safetensors.index.json")
    weights = {name for name in present if TOP_WEIGHTS.fullmatch(name)}
    yield from (f"{name}: missing" for name in sorted(shards - weights))
    if not weights and not shards:
        yield "no safetensors"
    yield from (f"{name}: cut short" for name in sorted(weights) if not whole(directory / name))


def _has(names: Iterable[str], variant: str) -> bool:
    return any(f".{variant}." in name for name in names)


def _shards(index: Path) -> frozenset[str]:
    tree = _json(index)
    shards = tree.get("weight_map", {}) if isinstance(tree, dict) else {}
    return frozenset(shards.values())


def _is_model(folder: Path) -> bool:
    """Models are configured by `config.json`; schedulers, tokenizers and processors by other files."""
    config = _json(folder / "config.json")
    return isinstance(config, dict) and ("_class_name" in config or "architectures" in config)


def whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its own header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8 or (length := struct.unpack("<Q", head)[0]) > size - 8:
            return False
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(size == 8 + length + max(ends, default=0))


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def snapshot(card: AnyCard, cache_dir: Path | None) -> Path | None:
    """The snapshot of the card's repo in the hub's cache, complete or not."""
    cache = (cache_dir or Path(HF_HUB_CACHE)) / f"models--{card.repo.replace('/', '--')}"
    revision = card.revision
    if not revision:
        ref = cache / "refs" / "main"
        revision = ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""
    found = cache / "snapshots" / revision
    return found if revision and found.is_dir() else None


def corrupt(directory: Path) -> tuple[tuple[str, ...], int]:
    """Files of a hub snapshot whose content is not what their name in the cache says, and how many were compared.

    Reads all of them; a directory that is no snapshot has none whose SHA-256 is known.
    """
    known = [path for path in sorted(directory.rglob("*"))
             if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", path.resolve().name)]
    wrong = tuple(str(path.relative_to(directory)) for path in known if sha256_of(path) != path.resolve().name)
    return wrong, len(known)


def sha256_of(path: Path) -> str:
    """Hex digest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- bringing it here ------------------------------------------------------------------------------------------------


def pull(card: AnyCard, *, say: Callable[[str], None], free: FreeBytes = free_bytes, cache_dir: Path | None = None,
         ) -> Pulled:
    """Bring a hub model's files into the hub's cache.

    A broken connection goes on where it broke; a pull that was killed goes on with the files that it had not finished.
    Obeys HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE. `say` hears one line. Raises InvalidDocument with what to
    do: gated, missing, no network, too little disk, or a file that is not what the hub says it is.
    """
    if not has_weights(card):
        raise refused(card, "loader", f"{card.loader} needs no weights; there is nothing to pull")
    if isinstance(resolve_repo(card), Path):
        raise refused(card, "repo", f"{card.repo} is on this machine already; there is nothing to pull")
    pulled = fetch(card, _listing, say=say, free=free, cache_dir=cache_dir)
    if found := gaps(pulled.directory, card):
        raise refused(card, "repo", f"{card.repo} lacks what its own {index_of(card)} names: {'; '.join(found[:5])}")
    return pulled


def fetch(card: AnyCard, listing: Listing, *, say: Callable[[str], None], free: FreeBytes = free_bytes,
          cache_dir: Path | None = None, way: str = "") -> Pulled:
    """Bring what `listing` names of the card's repo into the hub's cache; see `pull`, which looks for gaps too.

    `way`: how to do it without a network; empty: `by_hand`.
    """
    cache = cache_dir or Path(HF_HUB_CACHE)
    try:
        commit, files = listing(card, cache)
        missing = [file for file in files if not _is_here(card, cache, commit, file)]
        _require_room(card, missing, cache, free)
        total = sum(file.size_bytes for file in files)
        say(f"{card.repo} at {commit[:12]}: {len(files)} files, {total / 1e9:.2f} GB, "
            f"{sum(file.size_bytes for file in missing) / 1e9:.2f} GB of them to download")
        directory = Path(snapshot_download(card.repo, revision=commit, cache_dir=cache,
                                           allow_patterns=[file.path for file in files]))
    except (HTTPError, OSError) as error:  # the first is also what comes of no reply at all
        raise refused(card, "repo", _why_not_pulled(card, error, way or by_hand(card))) from error
    if not card.revision:
        _remember_main(card, cache, commit)
    # A pull that was killed may have left files that nobody compared.
    checked = _verify(card, directory, files if missing else ())
    return Pulled(directory=directory, files=len(files), size_bytes=total, checked=checked,
                  fetched_bytes=sum(file.size_bytes for file in missing))


def _listing(card: AnyCard, cache: Path) -> tuple[str, tuple[RemoteFile, ...]]:
    """The commit, and the files that the card needs of it."""
    info = HfApi().model_info(card.repo, revision=card.revision or None, files_metadata=True)
    everything = [RemoteFile(path=file.rfilename, size_bytes=file.size or 0,
                             sha256=file.lfs.sha256 if file.lfs is not None else "") for file in info.siblings or ()]
    if index_of(card) not in {file.path for file in everything}:
        raise refused(card, "repo", f"{card.repo} is not a {card.loader} checkpoint: it has no {index_of(card)}")
    commit = str(info.sha)
    if not isinstance(card, ModelCard) or is_flat(card):
        return commit, wanted_at_top(everything)
    index = _json(Path(hf_hub_download(card.repo, INDEX, revision=commit, cache_dir=cache)))
    return commit, wanted(everything, components(index if isinstance(index, dict) else {}, card), card.variant)


def _is_here(card: AnyCard, cache: Path, commit: str, file: RemoteFile) -> bool:
    path = cache / f"models--{card.repo.replace('/', '--')}" / "snapshots" / commit / file.path
    return path.is_file() and path.stat().st_size == file.size_bytes


def _require_room(card: AnyCard, missing: Iterable[RemoteFile], cache: Path, free: FreeBytes) -> None:
    need, have = sum(file.size_bytes for file in missing), free(cache)
    if need > have:
        raise refused(card, "repo", f"{need / 1e9:.2f} GB are to be downloaded to {cache}, and {have / 1e9:.2f} GB are "
                                    "free there; make room, or set HF_HOME to a directory on a larger disk")


def _remember_main(card: AnyCard, cache: Path, commit: str) -> None:
    """So that the model is found without asking the hub which commit is the newest."""
    ref = cache / f"models--{card.repo.replace('/', '--')}" / "refs" / "main"
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit, encoding="utf-8")


def _verify(card: AnyCard, directory: Path, files: Iterable[RemoteFile]) -> int:
    """Compare files with the hub's SHA-256, and throw away what differs. Returns how many were compared."""
    checked = [file for file in files if file.sha256]
    wrong = [file.path for file in checked if sha256_of(directory / file.path) != file.sha256]
    for path in wrong:
        (directory / path).resolve().unlink()
        (directory / path).unlink(missing_ok=True)
    if wrong:
        raise refused(card, "repo", f"{', '.join(wrong)} arrived damaged (its SHA-256 is not the hub's) and was "
                                    f"removed; run `reelray models pull {card.name}` again, it fetches what is missing")
    return len(checked)


def _why_not_pulled(card: AnyCard, error: Exception, way: str) -> str:
    page = f"{ENDPOINT}/{card.repo}"
    if isinstance(error, GatedRepoError):
        return (f"{card.repo} is given only to those who accepted its terms: log in and accept them at {page}, then "
                "set HF_TOKEN to a token of that account (or run `hf auth login`)")
    if isinstance(error, RevisionNotFoundError):
        return f"{card.repo} has no revision {card.revision!r}; leave `revision` empty to follow its main branch"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {page}, or it is private: then set HF_TOKEN to a token of an account that may read it"
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, so nothing is downloaded; unset it. {way}"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (f"{page} cannot be reached or stopped answering: {reason}. What has arrived is kept, the same command goes "
            f"on; behind a mirror set HF_ENDPOINT. {way}")


def ensure(card: AnyCard, *, say: Callable[[str], None]) -> None:
    """Before loading: weights that are not here are brought here. Raises InvalidDocument as `pull` does."""
    if has_weights(card) and find(card) is None:
        pull(card, say=say)
