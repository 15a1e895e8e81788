"""The shipped examples plan with the shipped cards, as a newcomer runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import CARDS_DIR, load_card
from configs.model_card import Task
from workflows.plan import Plan, plan_film
from workflows.script import looks_like_script
from workflows.source import read_text
from workflows.story import story_nodes
from workflows.storyboard import Mode, parse_storyboard
from workflows.types import NodeKind

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FIRST_FILM = EXAMPLES / "first_film.yaml"
SCRIPTS = sorted([*EXAMPLES.glob("*.fountain"), *EXAMPLES.glob("*.txt")])
CARDS = dict.fromkeys(Task, load_card(CARDS_DIR / "sketch.yaml"))


def first_film() -> Plan:
    return plan_film(parse_storyboard(read_text(FIRST_FILM), file=FIRST_FILM.name), cards=CARDS)


def test_the_first_film_plans_without_a_warning() -> None:
    assert first_film().warnings == ()


def test_the_first_film_shows_what_a_storyboard_can_do() -> None:
    film = parse_storyboard(read_text(FIRST_FILM))
    assert len(film.shots) >= 5
    assert any(shot.continues for shot in film.shots)
    assert any(shot.mode is Mode.KEYFRAME for shot in film.shots)
    captions = [shot.caption for shot in film.shots if shot.caption]
    assert any(caption.isascii() for caption in captions)
    assert any("\u4e00" <= letter <= "\u9fff" for caption in captions for letter in caption)


def test_the_first_film_has_every_kind_of_node_that_needs_no_script() -> None:
    kinds = {node.kind for node in first_film().nodes}
    assert kinds == {NodeKind.KEYFRAME, NodeKind.CLIP, NodeKind.CAPTION, NodeKind.COMPOSE}
    assert any(shot.fade_in_frames for shot in first_film().shots)


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_every_example_script_plans(path: Path) -> None:
    text = read_text(path)
    assert looks_like_script(text, path.name)
    storyboard, plan = story_nodes(text, cards=CARDS, file=path.name)
    assert storyboard.title
    assert len(plan.shots) >= 3


def test_every_example_is_tested() -> None:
    suffixes = {".yaml", ".yml", ".json", ".fountain", ".txt", ".md"}
    documents = {path.name for path in EXAMPLES.iterdir() if path.suffix in suffixes}
    assert documents == {FIRST_FILM.name} | {path.name for path in SCRIPTS}
