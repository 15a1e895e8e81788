"""What the documents show can be pasted: every storyboard in them is planned, every command and file in them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from configs.chat_card import ChatCard
from configs.load import casting, load_cards, load_settings, profile_names
from configs.model_card import ModelCard
from serve_app.cli import app
from workflows.plan import plan_film, referenced_pictures
from workflows.storyboard import parse_storyboard
from workflows.types import Artifact, MediaType

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
CARDS = [(page, block) for page in PAGES for block in YAML.findall(page.read_text(encoding="utf-8"))
         if "pipelines:" in block]
CHAT_CARDS = [block for page in PAGES for block in YAML.findall(page.read_text(encoding="utf-8"))
              if "loader: transformers" in block]
TAKE_PICTURES = ["models.text_to_image=flux2-klein-4b", "models.text_to_video=wan2.2-ti2v-5b",
                 "models.image_to_video=wan2.2-ti2v-5b"]
"""As docs/storyboard.md says beside its example."""
PICTURE = Artifact(key="k" * 32, uri="store/k.png", sha256="5" * 64, size_bytes=9, media_type=MediaType.PNG)
BLOCKS = [(page, block) for page in PAGES for block in YAML.findall(page.read_text(encoding="utf-8"))
          if "shots:" in block]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page.name}-{n}" for n, (page, _) in enumerate(BLOCKS)])
def test_a_storyboard_in_the_documents_is_planned_by_the_default_models(page: Path, block: str) -> None:
    storyboard = parse_storyboard(block)
    assets = {ref.path: PICTURE for ref in referenced_pictures(storyboard)}
    # The default models take no reference pictures.
    settings = load_settings("laptop", TAKE_PICTURES if assets else [], environ={})
    assert plan_film(storyboard, cards=casting(settings, load_cards(settings)), assets=assets).nodes


@pytest.mark.parametrize(("page", "block"), CARDS, ids=[page.name for page, _ in CARDS])
def test_a_model_card_in_the_documents_is_one(page: Path, block: str) -> None:
    assert ModelCard.model_validate(yaml.safe_load(block)).tasks


@pytest.mark.parametrize("block", CHAT_CARDS)
def test_a_chat_card_in_the_documents_is_one(block: str) -> None:
    assert ChatCard.model_validate(yaml.safe_load(block)).question_tokens


def test_there_are_storyboards_in_the_documents() -> None:
    assert {page.name for page, _ in BLOCKS} >= {"README.md", "storyboard.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_page_exists(page: Path) -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    used = set(re.findall(r"`reelray ([a-z]+)", text)) | set(re.findall(r"^reelray ([a-z]+)", shell, re.MULTILINE))
    assert used <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_and_profile_in_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (page.parent / link).exists()]
    assert links == []
    assert set(re.findall(r"--profile ([a-z]+)", text)) <= set(profile_names())
