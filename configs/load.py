"""Profile + environment + command line -> Settings; cards by name. The only reader of os.environ.

Later sources win: defaults in code < profile YAML < environment (`REELRAY_MODELS__TEXT_TO_VIDEO=...`) < `--set`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from configs.chat_card import AnyCard, ChatCard
from configs.endpoint import Endpoint
from configs.memory import with_room
from configs.model_card import EDIT_TASKS, ModelCard, Task
from configs.settings import Settings

HERE = Path(__file__).resolve().parent
PROFILES_DIR = HERE / "profiles"
CARDS_DIR = HERE / "models"
ENV_PREFIX = "REELRAY_"
PROFILE_VARIABLE = "REELRAY_PROFILE"
KEY_VARIABLE = "REELRAY_API_KEY"
SERVER_VARIABLE = "REELRAY_SERVER"
NOT_SETTINGS = frozenset({PROFILE_VARIABLE, KEY_VARIABLE, SERVER_VARIABLE})


class SettingsError(ValueError):
    """A setting, profile or card is unknown or wrong; the text says which, and the nearest valid one."""


def load_settings(
    profile: str = "", overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings in force.

    `profile` is the name of a shipped profile or the path of a YAML file (empty: $REELRAY_PROFILE, else `laptop`);
    `overrides` are `dotted.key=value` texts whose values are read as YAML. Raises SettingsError.
    """
    environ = os.environ if environ is None else environ
    name = profile or environ.get(PROFILE_VARIABLE, "") or "laptop"
    tree = _read_profile(name)
    for variable, text in sorted(environ.items()):
        if variable.startswith(ENV_PREFIX) and variable not in NOT_SETTINGS:
            _assign(tree, variable.removeprefix(ENV_PREFIX).lower().split("__"), text, source=variable)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise SettingsError(f"--set {override!r}: expected key=value, e.g. --set models.text_to_video=sketch")
        _assign(tree, key.strip().split("."), text, source=f"--set {key.strip()}")
    try:
        return Settings(**tree)
    except ValidationError as error:
        raise SettingsError(_first_problem(error, name)) from error


def client_key(environ: Mapping[str, str] | None = None) -> str:
    """The key that a client of the HTTP API sends ($REELRAY_API_KEY); empty when there is none."""
    return (os.environ if environ is None else environ).get(KEY_VARIABLE, "")


def api_key(endpoint: Endpoint, environ: Mapping[str, str] | None = None) -> str:
    """The key to somebody else's API; empty when none is named. Hand it to nothing that logs, stores or pickles.

    Raises SettingsError, which names the variable or setting and never shows what is in it.
    """
    where = endpoint.key_place
    if endpoint.api_key_env:
        key = (os.environ if environ is None else environ).get(endpoint.api_key_env, "").strip()
    elif endpoint.api_key_file is not None:
        try:
            key = endpoint.api_key_file.expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{where} cannot be read: {type(error).__name__}") from None
    else:
        return ""
    if not key:
        raise SettingsError(f"{where} holds no key; set it where the Director and the replicas run")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(f"{where} does not hold a key alone: it has spaces, line breaks or other characters")
    return key


def profile_names() -> tuple[str, ...]:
    """Names of the shipped profiles."""
    return tuple(sorted(path.stem for path in PROFILES_DIR.glob("*.yaml")))


def load_all_cards(settings: Settings, environ: Mapping[str, str] | None = None) -> dict[str, AnyCard]:
    """All cards by name, shipped ones first, then those of `models.card_dirs` (which win). Raises SettingsError.

    A card whose `repo_env` names a variable that is set reads that repo instead of its own.
    """
    environ = os.environ if environ is None else environ
    cards: dict[str, AnyCard] = {}
    for directory in (CARDS_DIR, *settings.models.card_dirs):
        if not directory.expanduser().is_dir():
            raise SettingsError(f"models.card_dirs: {directory} is not a directory")
        for path in sorted(directory.expanduser().glob("*.yaml")):
            card = load_card(path)
            if isinstance(card, ModelCard) and (repo := environ.get(card.repo_env, "").strip()):
                card = card.model_copy(update={"repo": repo, "revision": ""})
            cards[card.name] = card
    return cards


def load_cards(settings: Settings, paths: Mapping[str, str] = MappingProxyType({})) -> dict[str, ModelCard]:
    """The cards that make pictures and clips, by name; see `load_all_cards`. `paths`: variables that stand before those
    of the environment."""
    cards = load_all_cards(settings, {**os.environ, **paths})
    return {name: card for name, card in cards.items() if isinstance(card, ModelCard)}


def story_card(settings: Settings) -> ChatCard | None:
    """The language model that runs here, where one is asked for stories. Raises SettingsError for an unknown one."""
    name = settings.story.card
    if not (name and settings.story.asks_model):
        return None
    cards = load_all_cards(settings)
    card = cards.get(name)
    if isinstance(card, ChatCard):
        return card
    able = [other for other, found in cards.items() if isinstance(found, ChatCard)]
    problem = f"card {name!r} makes pictures, no stories" if card else f"no card {name!r}{suggestion(name, able)}"
    raise SettingsError(f"story.card: {problem}; cards that can: {', '.join(able) or 'none'}")


def load_card(path: Path) -> AnyCard:
    """One card from its YAML file. Raises SettingsError naming file and field."""
    tree = _read_yaml(path)
    try:
        card: AnyCard = ChatCard(**tree) if tree.get("loader") == "transformers" else ModelCard(**tree)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise SettingsError(f"{path}: {where}: {error.errors()[0]['msg']}") from error
    if card.name != path.stem:
        raise SettingsError(f"{path}: name is {card.name!r} but the file is called {path.stem!r}; make them equal")
    return card


def cards_in_use(settings: Settings) -> tuple[AnyCard, ...]:
    """The cards that answer some task, each once, those of edits, the one that compares pictures, and the one that
    writes stories. Raises SettingsError.
    """
    cards = load_cards(settings)
    drawing = {card.name: card for card in casting(settings, cards).values()}
    others = (scorer_of(settings, cards), story_card(settings))
    return (*drawing.values(), *edit_cards(settings, cards), *(card for card in others if card is not None))


def edit_cards(settings: Settings, cards: Mapping[str, ModelCard]) -> tuple[ModelCard, ...]:
    """The cards that find and edit in videos here. Raises SettingsError for unknown ones and for those of films."""
    able = [card.name for card in cards.values() if {Task.TRACK, *EDIT_TASKS} & set(card.tasks)]
    for name in settings.models.edit_cards:
        if name not in able:
            known = f"card {name!r} makes films" if name in cards else f"no card {name!r}{suggestion(name, able)}"
            raise SettingsError(f"models.edit_cards: {known}; cards that can: {', '.join(able)}")
    return tuple(with_room(cards[name], settings.models) for name in dict.fromkeys(settings.models.edit_cards))


def scorer_of(settings: Settings, cards: Mapping[str, ModelCard]) -> ModelCard | None:
    """The card that compares clips with reference pictures; None: nobody does. Raises SettingsError."""
    name = settings.models.scorer
    if not name:
        return None
    able = [card.name for card in cards.values() if card.loader == "embedding"]
    if name not in able:
        known = f"card {name!r} draws, and compares nothing" if name in cards else f"no card {name!r}"
        raise SettingsError(f"models.scorer: {known}; cards that can: {', '.join(able)}")
    return cards[name]


def casting(settings: Settings, cards: Mapping[str, ModelCard]) -> dict[Task, ModelCard]:
    """Which card answers which task. Raises SettingsError for unknown cards and for cards that cannot do the task.

    A card that only animates pictures may stand for text to video when it is the card for image to video too: shots
    then start as a drawn keyframe.
    """
    chosen = {
        Task.TEXT_TO_IMAGE: settings.models.text_to_image,
        Task.TEXT_TO_VIDEO: settings.models.text_to_video,
        Task.IMAGE_TO_VIDEO: settings.models.image_to_video,
    }
    for task, name in chosen.items():
        if name not in cards:
            raise SettingsError(f"models.{task.value}: no card {name!r}{suggestion(name, cards)}; "
                                "`reelray models list` shows all")
        animates = task is Task.TEXT_TO_VIDEO and Task.IMAGE_TO_VIDEO in cards[name].pipelines
        if task not in cards[name].pipelines and not (animates and settings.models.image_to_video == name):
            able = ", ".join(card.name for card in cards.values() if task in card.pipelines)
            does = ", ".join(cards[name].tasks) or "comparisons"
            raise SettingsError(f"models.{task.value}: card {name!r} does {does} only; cards that can: {able}" + (
                                    f"; to draw each shot's first frame and animate it with {name!r}, set "
                                    f"models.image_to_video={name} too" if animates else ""))
    return {task: with_room(cards[name], settings.models) for task, name in chosen.items()}


def _read_profile(name: str) -> dict[str, Any]:
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else PROFILES_DIR / f"{name}.yaml"
    if not path.is_file():
        raise SettingsError(f"no profile {name!r}{suggestion(name, profile_names())}; "
                            f"shipped: {', '.join(profile_names())}; or give the path of a YAML file")
    return _read_yaml(path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: expected a mapping of settings, found {type(tree).__name__}")
    return tree


def _assign(tree: MutableMapping[str, Any], keys: list[str], text: str, *, source: str) -> None:
    try:
        value = yaml.safe_load(text) if text.strip() else ""
    except yaml.YAMLError as error:
        raise SettingsError(f"{source}: {text!r} is not a value: {error}") from error
    node: Any = Settings
    for depth, key in enumerate(keys):
        names = _field_names(node)
        if names is not None and key not in names:
            raise SettingsError(f"{source}: no setting {'.'.join(keys[: depth + 1])!r}{suggestion(key, names)}")
        node = _field_type(node, key)
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def _field_names(node: Any) -> tuple[str, ...] | None:
    """Names under a settings class; None where any key may stand (mappings)."""
    if isinstance(node, type) and issubclass(node, BaseModel):
        return tuple(node.model_fields)
    return None if node is dict else ()


def _field_type(node: Any, key: str) -> Any:
    if isinstance(node, type) and issubclass(node, BaseModel):
        annotation = node.model_fields[key].annotation
        return dict if getattr(annotation, "__origin__", None) is dict else annotation
    return dict  # below a mapping pydantic checks the rest


def suggestion(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for an error's text; empty when nothing is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


def _first_problem(error: ValidationError, profile: str) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "settings"
        # What stands under an unknown name may be a key, pasted where a variable's name belongs.
        shown = problem["type"] not in ("value_error", "extra_forbidden")
        lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}"
                     + (f" (found {problem['input']!r})" if shown else ""))
    return f"profile {profile}: " + "; ".join(lines)
