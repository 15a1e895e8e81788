"""Where a card's weights are. Knows no torch, so that commands that only look start fast."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from configs.chat_card import AnyCard, ChatCard
from workflows.errors import InvalidDocument, Problem

PACKAGE = "package:"


def is_flat(card: AnyCard) -> bool:
    """Whether the checkpoint is one model of transformers, all files at the top, rather than a folder per component."""
    return isinstance(card, ChatCard) or card.loader == "tracker"


def index_of(card: AnyCard) -> str:
    """The file that the card's checkpoint is known by."""
    return "config.json" if is_flat(card) else "model_index.json"


def resolve_repo(card: AnyCard) -> Path | str:
    """The directory of the card's checkpoint, which exists and is one; or the hub id.

    `package:serve_app/models/x` is a path inside an installed package, wherever that was installed. What looks like a
    path (absolute, starting with `.` or `~`, or with more than one `/`) is one, and so is any directory that is there;
    the rest is a hub id. Raises InvalidDocument naming the directory that is missing.
    """
    path = local_path(card, card.repo)
    return card.repo if path is None else _checkpoint(card, path)


def local_path(card: AnyCard, repo: str, field: str = "repo") -> Path | None:
    """The directory that a repo's name means, there or not; None for a hub id. `field`: of the card, for the error."""
    if repo.startswith(PACKAGE):
        package, _, inside = repo.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise refused(card, field, f"there is no installed package {package!r}")
        return Path(next(iter(spec.submodule_search_locations))) / inside
    path = Path(repo).expanduser()
    is_path = path.is_absolute() or repo.startswith((".", "~")) or repo.count("/") > 1 or path.is_dir()
    return path if is_path else None


def import_home(card: AnyCard) -> None:
    """Import the package that holds a shipped checkpoint, for the components that it defines itself.

    diffusers builds a component of a class from outside only when its module is already loaded; code that came with a
    checkpoint from elsewhere is never run.
    """
    if card.repo.startswith(PACKAGE):
        importlib.import_module(card.repo.removeprefix(PACKAGE).rpartition("/")[0].replace("/", "."))


def _checkpoint(card: AnyCard, path: Path) -> Path:
    if not path.is_dir():
        raise refused(card, "repo", f"the weights are not there: {path} is not a directory")
    if not (path / index_of(card)).is_file():
        raise refused(card, "repo", f"{path} is not a {card.loader} checkpoint: it has no {index_of(card)}")
    return path


def refused(card: AnyCard, field: str, problem: str, nearest: str = "") -> InvalidDocument:
    """The error for a card that cannot be used."""
    return InvalidDocument(problems=(Problem(field=field, problem=problem, nearest=nearest),),
                           file=f"model card {card.name}")
