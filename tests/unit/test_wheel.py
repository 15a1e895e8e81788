"""The built wheel is whole: it works from another directory, without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files in a directory of their own."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                    "--wheel-dir", str(place), str(ROOT)], check=True)
    [wheel] = place.glob("reelray-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place / "site"


def run(unpacked: Path, tmp_path: Path, code: str) -> str:
    """Run Python in an empty directory that sees the wheel's files before anything else."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_room_comes_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    code = ("import configs, workflows, actors, serve_app\n"
            "print([room.__file__ for room in (configs, workflows, actors, serve_app)])")
    assert run(unpacked, tmp_path, code).count(str(unpacked)) == 4


def test_cards_profiles_migrations_and_weights_are_inside(unpacked: Path, tmp_path: Path) -> None:
    out = run(unpacked, tmp_path, (
        "import json\nfrom configs.load import load_cards, load_settings\nfrom workflows.durable.ledger import Ledger\n"
        "from serve_app.models.repo import resolve_repo\n"
        "cards = load_cards(load_settings('laptop', environ={}))\nLedger('sqlite:///state.db').jobs()\n"
        "print(json.dumps([sorted(cards), str(resolve_repo(cards['sketch']))]))"))
    names, weights = json.loads(out)
    assert {"placeholder", "sketch", "svd-xt", "wan2.1-t2v-1.3b"} <= set(names)
    assert Path(weights).is_relative_to(unpacked)
    assert list(Path(weights).rglob("*.safetensors"))


def test_the_command_line_answers(unpacked: Path, tmp_path: Path) -> None:
    out = run(unpacked, tmp_path, "import sys; sys.argv = ['reelray', 'models', 'list']\n"
                                  "from serve_app.cli import main\nmain()")
    assert "sketch" in out


def test_tests_and_examples_stay_out_of_the_wheel(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir() if path.is_dir() and "dist-info" not in path.name} == {
        "configs", "workflows", "actors", "serve_app"}


def test_the_page_is_inside_with_the_licences_of_what_it_uses(unpacked: Path, tmp_path: Path) -> None:
    out = run(unpacked, tmp_path, (
        "import json\nfrom serve_app.web import EXAMPLES, STATIC, TEMPLATES\n"
        "places = (TEMPLATES, STATIC, STATIC / 'vendor', EXAMPLES)\n"
        "print(json.dumps([str(file) for place in places for file in place.iterdir()]))"))
    files = [Path(name) for name in json.loads(out)]
    assert all(file.is_relative_to(unpacked) for file in files)
    assert {"base.html", "film.html", "page.css", "page.js", "htmx.min.js", "htmx.LICENSE", "sse.min.js", "sse.LICENSE",
            "first_film.yaml"} <= {file.name for file in files}
