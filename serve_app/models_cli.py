"""`reelray models`: what can render, what it needs, and bringing its weights here. torch is loaded by `check` alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.chat_card import AnyCard, ChatCard
from configs.load import SettingsError, cards_in_use, casting, load_all_cards, load_settings, story_card, suggestion
from configs.memory import Remedies, default_shape, first_that_fits, need_of, room_gb, rungs_of, share_of
from configs.model_card import GPU_SIZES_GB, ModelCard
from configs.references import IpAdapter
from configs.settings import Settings
from serve_app import edit_facts
from serve_app.gpus import with_gpu_memory
from serve_app.options import JsonOption, ProfileOption, SetOption
from workflows.drafts import draft_text
from workflows.types import Json

if TYPE_CHECKING:
    from serve_app.models import weights

models_app = typer.Typer(no_args_is_help=True, help="Model cards: what can render, what it needs, and its weights.")
out = Console()
err = Console(stderr=True)

CardArgument = Annotated[str, typer.Argument(metavar="NAME", help="Card, as `reelray models list` shows it.")]
UNREAD_WORDS = 100_000
"""From here on a card means that nothing is cut off."""
VERDICTS = {"fits": "fits", "tight": "its weights fit, the peak does not", "no": "does not fit"}


@models_app.command("list")
def models_list(profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False) -> None:
    """List model cards, which tasks they do here, and the vocabulary of small ones."""
    settings = with_gpu_memory(load_settings(profile, settings_ or ()))
    everything = load_all_cards(settings)
    if as_json:
        print(json.dumps([card.model_dump(mode="json") for card in everything.values()], ensure_ascii=False))
        return
    cards = {name: card for name, card in everything.items() if isinstance(card, ModelCard)}
    cast = casting(settings, cards)
    for card in cards.values():
        used = [task.value for task, chosen in cast.items() if chosen.name == card.name]
        used += ["edits"] if card.name in settings.models.edit_cards else []
        out.print(f"[bold]{card.name}[/bold]  {card.title}", highlight=False)
        if card.loader == "embedding":
            out.print("  compares pictures" + ("; used here" if settings.models.scorer == card.name else ""))
            continue
        out.print(f"  does {', '.join(card.tasks)}" + (f"; used here for {', '.join(used)}" if used else ""),
                  highlight=False)
        if fact := _references_fact(card):
            out.print(f"  takes {fact}", highlight=False)
        default = card.defaults
        usual = edit_facts.usual(card) or (f"{default.width_px}x{default.height_px}, {default.frames} frames at "
                                           f"{default.fps:g} fps, {default.steps} steps")
        out.print(f"  {usual}; {share_of(card, settings.models).gpus:g} GPU per replica", highlight=False)
        if card.world:
            out.print("  it knows only these words:", highlight=False)
            for line in card.world.describe().splitlines():
                out.print(f"    {line}", highlight=False)
    _list_writers([card for card in everything.values() if isinstance(card, ChatCard)], settings)
    out.print("choose with --set models.text_to_video=NAME; your own cards: --set models.card_dirs=[DIR]",
              style="dim", highlight=False)


def _list_writers(cards: list[ChatCard], settings: Settings) -> None:
    from serve_app import chat_check

    used = story_card(settings)
    for card in cards:
        out.print(f"[bold]{card.name}[/bold]  {card.title}", highlight=False)
        for line in chat_check.told(card, is_used=card == used, share=share_of(card, settings.models)):
            out.print(line, highlight=False)


@models_app.command("show")
def models_show(name: CardArgument, profile: ProfileOption = "", settings_: SetOption = None,
                as_json: JsonOption = False) -> None:
    """Show everything of one card: licence, rules, defaults, memory and the GPUs it fits, sources, its weights here."""
    card = _card(name, profile, settings_)
    share = share_of(card, with_gpu_memory(load_settings(profile, settings_ or ())).models)
    if as_json:
        fits: Json = {} if card.memory is None else {str(size): card.memory.fit(size) for size in GPU_SIZES_GB}
        told: dict[str, Json] = {"fits_gb": fits, "here": _here(card), "share": {"gpus": share.gpus, "why": share.why},
                                 **({"exactness": card.exactness} if isinstance(card, ModelCard) else {})}
        print(json.dumps({**card.model_dump(mode="json"), **told}, ensure_ascii=False))
        return
    out.print(f"[bold]{card.name}[/bold]  {card.title}", highlight=False)
    table = Table(box=None, show_header=False)
    facts = _chat_facts(card) if isinstance(card, ChatCard) else _facts(card)
    for label, text in [*facts, *([("share", str(share))] if share.gpus else [])]:
        table.add_row(Text(label, style="dim"), Text(text, overflow="fold"))
    out.print(table)


@models_app.command("pull")
def models_pull(name: CardArgument, profile: ProfileOption = "", settings_: SetOption = None,
                as_json: JsonOption = False) -> None:
    """Download a hub model's weights: safetensors and configuration only, what is here already is not fetched again.
    The adapter's files of a card that takes reference pictures through one are fetched too.

    The disk is checked before, the SHA-256 of every large file after, unless all were here already. HF_TOKEN opens
    gated models, HF_ENDPOINT names a mirror, HF_HOME the directory, HF_HUB_OFFLINE=1 forbids it.
    """
    card = _card(name, profile, settings_)
    if card.licence_terms:
        err.print(f"licence {card.licence}: {card.licence_terms} {card.licence_url}", style="dim", highlight=False)
    pulled = _pulled(card, say=lambda line: err.print(line, highlight=False))
    if as_json:
        print(json.dumps({"directory": str(pulled.directory), "files": pulled.files, "size_bytes": pulled.size_bytes,
                          "fetched_bytes": pulled.fetched_bytes, "checked": pulled.checked}))
        return
    out.print(f"{card.name}: {pulled.files} files, {pulled.size_bytes / 1e9:.2f} GB here, "
              f"{pulled.fetched_bytes / 1e9:.2f} GB of them new, SHA-256 of {pulled.checked} compared", highlight=False)
    print(pulled.directory)


@models_app.command("check")
def models_check(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Card; default: those in use here.")] = "",
    load: Annotated[bool, typer.Option("--load", help="Load each pipeline too, and say how long it took.")] = False,
    checksums: Annotated[bool, typer.Option(help="Read every weight of a hub model and compare its SHA-256.")] = False,
    profile: ProfileOption = "", settings_: SetOption = None, as_json: JsonOption = False,
) -> None:
    """Check that classes exist, weights are here and whole, and sizes agree with the card; exit code 1 when not."""
    from serve_app import chat_check
    from serve_app.models_check import examine_card

    settings = load_settings(profile, settings_ or ())
    chosen = [_card(name, profile, settings_)] if name else cards_in_use(settings)
    findings = [(card.name, finding) for card in chosen
                for finding in (chat_check.examine(card, load=load, checksums=checksums) if isinstance(card, ChatCard)
                                else examine_card(card, load=load, checksums=checksums))]
    if as_json:
        print(json.dumps([{"card": card, **finding.to_json()} for card, finding in findings], ensure_ascii=False))
    else:
        table = Table(box=None, show_header=False)
        for card_name, finding in findings:
            style = {"ok": "green", "note": "yellow", "fail": "bold red"}[finding.level]
            table.add_row(Text(finding.level, style=style), card_name, finding.what, Text(finding.text))
        out.print(table)
    if any(finding.level == "fail" for _, finding in findings):
        raise typer.Exit(1)


def _card(name: str, profile: str, overrides: list[str] | None) -> AnyCard:
    """The card of that name. Raises SettingsError with the nearest one."""
    cards = load_all_cards(load_settings(profile, overrides or ()))
    if name not in cards:
        raise SettingsError(f"no card {name!r}{suggestion(name, cards)}; `reelray models list` shows all")
    return cards[name]


def _here(card: AnyCard) -> str:
    """Where the weights are, or empty."""
    from serve_app.models import adapters, weights

    extra = adapters.extra_of(card)
    found: Path | None = weights.find(card) if weights.has_weights(card) else None
    if card.loader == "embedding" and extra is not None:
        found = adapters.find(card, extra)
    return str(found or "")


def _pulled(card: AnyCard, say: Callable[[str], None]) -> weights.Pulled:
    """The model's files, then those that are no part of its checkpoint; counted together."""
    from serve_app.models import adapters, weights
    from serve_app.models.repo import resolve_repo

    extra = adapters.extra_of(card)
    if extra is None:
        return weights.pull(card, say=say)
    # The model may be a directory of this machine, and its adapter a hub's.
    if card.loader == "embedding" or isinstance(resolve_repo(card), Path):
        return adapters.pull(card, extra, say=say)
    model, beside = weights.pull(card, say=say), adapters.pull(card, extra, say=say)
    return weights.Pulled(
        directory=model.directory, files=model.files + beside.files, size_bytes=model.size_bytes + beside.size_bytes,
        fetched_bytes=model.fetched_bytes + beside.fetched_bytes, checked=model.checked + beside.checked)


def _facts(card: ModelCard) -> list[tuple[str, str]]:
    """Label and text, in reading order; what a card does not say is left out."""
    default, size, frames = card.defaults, card.size, card.frames
    still = frames.max_frames == 1
    facts = [
        ("does", ", ".join(f"{task.value} ({pipeline})" for task, pipeline in card.pipelines.items())
         or "compares clips with reference pictures (models.scorer)"),
        ("grade", card.grade),
        ("draft", draft_text(card) or "as the final film"),
        ("repo", card.repo + (f" at {card.revision}" if card.revision else "")),
        ("weights", _weights_fact(card)),
        ("licence", " ".join([card.licence, card.licence_url])),
        ("", card.licence_terms + (" Gated: the hub asks you to accept its terms." if card.gated else "")),
        ("dtype", ", ".join([card.dtype, *(f"{part} {dtype}" for part, dtype in card.dtypes.items())])),
        ("exactness", card.exactness + (f", against the same weights without: {_effects(card)}" if card.effects() else
                                        ": no speed or memory switch is on")),
        ("default", f"{default.width_px}x{default.height_px}, "
                    + ("" if still else f"{default.frames} frames at {default.fps:g} fps, ")
                    + f"{default.steps} steps, guidance {default.guidance:g}"),
        ("sizes", f"multiples of {size.multiple_px}, {size.min_px} to {size.max_px} pixels"),
        ("frames", "" if still else (f"{frames.step}n+{frames.offset}, " if frames.step > 1 else "")
         + f"{frames.min_frames} to {frames.max_frames}"),
        ("prompt", f"up to about {card.prompt_words} words" if card.prompt_words < UNREAD_WORDS else ""),
        ("batch", f"up to {card.batch} pictures in one call" if card.batch > 1 else ""),
        ("references", _references_fact(card)),
        ("parallel", "" if card.parallel is None else str(card.parallel)),
        ("elastic", "" if card.elastic is None else str(card.elastic)),
        ("speed", f"about {card.seconds_per_step:g} s per step at the default shape"
                  + (", on a large GPU" if card.loader == "diffusers" and card.resources.num_gpus != 0 else "")),
    ]
    facts = edit_facts.adjusted(card, facts)
    return [*((label, text.strip()) for label, text in [*facts, *_memory_facts(card)] if text.strip()),
            *(("source" if not number else "", source) for number, source in enumerate(card.sources)),
            *([("note", card.notes.strip())] if card.notes else [])]


def _chat_facts(card: ChatCard) -> list[tuple[str, str]]:
    from serve_app import chat_check

    return [*((label, text.strip()) for label, text in [*chat_check.facts(card), *_memory_facts(card)] if text.strip()),
            *(("source" if not number else "", source) for number, source in enumerate(card.sources)),
            *([("note", card.notes.strip())] if card.notes else [])]


def _references_fact(card: ModelCard) -> str:
    """How it takes pictures of characters; empty when it does not."""
    part = card.references
    if part is None:
        return ""
    how = f"up to {part.max_pictures} reference picture{'s' if part.max_pictures > 1 else ''} of characters"
    if not isinstance(part, IpAdapter):
        return how + (", and at least one" if part.required else "")
    return (f"{how}, at weight {part.scale:g}, through {part.repo} {part.weight_file}"
            + (f" at {part.revision}" if part.revision else ""))


def _effects(card: ModelCard) -> str:
    return "; ".join(effect.render() for effect in card.effects())


def _weights_fact(card: ModelCard) -> str:
    from serve_app.models import adapters

    if card.loader not in ("diffusers", "embedding", "tracker"):
        return ""
    here, how = _here(card), f"not here; `reelray models pull {card.name}`"
    return (here or how) if adapters.is_here(card) else f"{here}; its adapter is {how}" if here else how


def _memory_facts(card: AnyCard) -> list[tuple[str, str]]:
    memory = card.memory
    if memory is None:
        return []
    parts = ", ".join(f"{name} {gb:g}" for name, gb in memory.weights_gb.items())
    told = VERDICTS if memory.peaks else {**VERDICTS, "tight": "its weights fit, its peak is not known"}
    verdicts = ", ".join(f"{gb} GB: {told[memory.fit(gb)]}" for gb in GPU_SIZES_GB)
    return [("memory", f"weights {memory.total_gb:.1f} GB ({parts}); {memory.source}"),
            *(("peak", f"{peak.gb:g} GB at {peak.shape}, {peak.how}: {peak.source}") for peak in memory.peaks),
            ("GPU of", verdicts), ("on less", _on_less(card) if isinstance(card, ModelCard) else "")]


def _on_less(card: ModelCard) -> str:
    """What is done on GPUs that do not hold the default shape, where it helps."""
    need = need_of(card, default_shape(card))
    found = {gb: first_that_fits(need, room_gb(gb, 1), rungs_of(card)) for gb in GPU_SIZES_GB} if need else {}
    return "; ".join(f"{gb} GB: {remedies}" for gb, remedies in found.items() if remedies and remedies != Remedies())
