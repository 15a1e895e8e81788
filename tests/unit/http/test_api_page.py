"""The pages that show the API: their curl commands work as they stand, and every route is named."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.desk import ROUTES, Shop
from tests.edit_clips import red_ball, write_source
from tests.unit.http.test_remote import serving

ROOT = Path(__file__).resolve().parents[3]
PAGES = (ROOT / "docs" / "api.md", ROOT / "docs" / "openai.md", ROOT / "README.md")
THREE = {"shots": [{"id": "s1", "prompt": "a red circle"}, {"id": "s2", "prompt": "a star"},
                   {"id": "ball", "prompt": "a red ball"}]}


def commands() -> list[list[str]]:
    """Every curl command of the pages, as a shell would split it."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            words = shlex.split(block.replace("\\\n", " "), comments=True)
            starts = [place for place, word in enumerate(words) if word == "curl"]
            found += [words[start:end] for start, end in zip(starts, [*starts[1:], len(words)], strict=False)]
    return found


@cache
def video() -> bytes:
    """What the pages call `ball.mp4`, and whoever reads them has."""
    with tempfile.TemporaryDirectory() as scratch:
        return write_source(red_ball(30).frames_THWC, Path(scratch) / "ball.mp4").read_bytes()


def file_of(name: str) -> bytes:
    return video() if name == "ball.mp4" else (ROOT / name).read_bytes()


@pytest.mark.parametrize("words", commands(), ids=lambda words: next(w for w in words if "http" in w)[-40:])
def test_a_curl_command_works_as_it_stands(shop: Shop, words: list[str]) -> None:
    job_id = shop.film(THREE)
    made = shop.client.post("/api/batches", json={"name": "x", "films": [{"file": "a", "storyboard": THREE}]}).json()
    method, url, headers, body, files = "", "", {}, None, {}
    rest = iter(words[1:])
    for word in rest:
        match word:
            case "-X":
                method = next(rest)
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            case "-d":
                body = next(rest).encode()
            case "--data-binary":
                body = file_of(next(rest).removeprefix("@"))
            case "-F":
                name, _, value = next(rest).partition("=")
                files[name] = (None, value) if not value.startswith("@") else (value[1:], file_of(value[1:]))
            case "-o":
                next(rest)
            case _ if word.startswith("http://127.0.0.1:8000/"):
                url = word.removeprefix("http://127.0.0.1:8000").replace("BATCH", made["id"]).replace("ID", job_id)
    if body and b"upload:ID" in body:
        sent = shop.client.post("/api/uploads", content=file_of("ball.mp4"), headers={"Content-Type": "video/mp4"})
        body = body.replace(b"upload:ID", sent.json()["uri"].encode())
    reply = shop.client.request(method or ("POST" if body or files else "GET"), url, headers=headers, content=body,
                                files=files or None)
    assert reply.status_code in (200, 201, 202), reply.text


def test_there_are_curl_commands() -> None:
    assert len(commands()) >= 10


def test_the_python_of_the_page_runs_as_it_stands(
        tmp_path: Path, migrated_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    with serving(tmp_path, migrated_file) as served, contextlib.chdir(tmp_path):
        exec(compile(block.replace("http://127.0.0.1:8000", served.url), "api.md", "exec"), {})
    assert (tmp_path / "film.mp4").stat().st_size
    told = capsys.readouterr().out
    assert "shot_update" in told
    assert told.splitlines()[-1].startswith("done ")


def test_every_route_is_on_the_page() -> None:
    page = "".join(page.read_text(encoding="utf-8") for page in PAGES[:2])
    for path in ROUTES:
        shown = path.replace("{job_id}", "{id}").replace("{shot_id}", "{shot}").replace("{file}", "")
        assert shown in page, path
