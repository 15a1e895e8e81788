"""`reelray batch`: on a server of this process from end to end, and what needs no Ray on this machine."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from configs.load import load_settings
from serve_app.batch_files import film_name, named_files
from serve_app.batch_screen import PlainBatch
from serve_app.batch_site import LocalBatches, RemoteBatches, Wish
from serve_app.cli import app
from serve_app.remote import open_remote
from serve_app.site import Interrupted
from serve_app.workplace import open_workplace
from tests.unit.http.test_remote import Served, serving
from workflows.durable.batches import Batches
from workflows.durable.ledger import Ledger
from workflows.errors import InvalidDocument, ServerRefused, UnknownBatch
from workflows.media.decode import write_png
from workflows.tiers import Tier
from workflows.types import JobStatus, Stage

FILMS = {"a.yaml": "shots: [{prompt: a red circle, image: a.png}]\n", "b.yaml": "shots: [{prompt: a star}]\n",
         "c.fountain": "INT. STUDIO - DAY\n\nA green circle moves left over a black background.\n"}


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    """A directory of three films, one with a picture, and a note that is no film."""
    place = tmp_path / "boards"
    place.mkdir()
    write_png(np.full((64, 96, 3), 90, np.uint8), place / "a.png")
    for name, text in FILMS.items():
        (place / name).write_text(text)
    (place / "README.md").write_text("Not a film.")
    return place


@pytest.fixture
def served(tmp_path: Path, migrated_file: Path) -> Iterator[Served]:
    with serving(tmp_path, migrated_file) as one:
        yield one


def batch(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["batch", *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


class TestFiles:
    def test_a_directory_means_its_storyboards_and_screenplays_in_order(self, boards: Path) -> None:
        named = named_files([boards])
        assert [one.file for one in named.files] == ["a.yaml", "b.yaml", "c.fountain"]
        assert named.name.startswith("boards-")

    def test_the_name_follows_from_what_is_named_and_not_from_what_it_holds(self, boards: Path) -> None:
        name = named_files([boards]).name
        (boards / "d.yaml").write_text("anything")
        assert named_files([boards]).name == name
        assert named_files([boards / "a.yaml", boards / "b.yaml"]).name != name
        assert named_files([boards], tier=Tier.DRAFT).name != name
        assert named_files([boards], last_stage=Stage.IMAGES).name != name
        assert named_files([boards], name="mine").name == "mine"

    def test_two_films_of_one_name_are_refused(self, boards: Path) -> None:
        (boards / "a.json").write_text("{}")
        with pytest.raises(InvalidDocument, match="its film would be called a like another one's") as refused:
            named_files([boards])
        assert {problem.file for problem in refused.value.problems} == {"a.yaml", "a.json"}

    def test_a_directory_without_films_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidDocument, match="holds no storyboard"):
            named_files([tmp_path])

    @pytest.mark.parametrize(("file", "film"), [("a.yaml", "a"), ("x/a.b.yaml", "x/a.b"), ("../../etc/a.yaml", "etc/a"),
                                                ("/etc/a.yaml", "etc/a"), ("..", "film")])
    def test_a_film_never_leaves_the_directory_of_its_batch(self, file: str, film: str) -> None:
        assert str(film_name(file)) == film


class TestOnAServer:
    def test_a_directory_is_rendered_there_and_every_film_comes_home(
            self, served: Served, boards: Path, tmp_path: Path) -> None:
        words = [str(boards), "-o", str(tmp_path / "out"), "--server", served.url]
        said = batch(*words)
        assert "3 new jobs, 0 files were there already" in said
        assert "succeeded: 3 of 3 films" in said
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]
        painted = len(served.shop.painter.made)
        assert "0 new jobs, 3 files" in batch(*words)
        (boards / "b.yaml").write_text("shots: [{prompt: a moon}]\n")
        assert "1 new jobs, 1 of them changed, 2 files" in batch(*words)
        assert len(served.shop.painter.made) == painted + 2
        [listed] = json.loads(batch("list", "--server", served.url, "--json"))
        table = batch("report", listed["id"], "--csv", "--price", "2", "--server", served.url).splitlines()
        assert table[0].startswith("file,job_id,shot,status,")
        assert sum(line.startswith("b.yaml,") and ",s1," in line for line in table) == 2, "what it was has cost too"

    def test_a_wrong_file_is_told_by_file_and_line_and_nothing_is_taken(self, served: Served, boards: Path) -> None:
        (boards / "bad.yaml").write_text("shots:\n  - prompt: x\n    frames: 2\n")
        (boards / "b.yaml").write_text("shots: [{prompt: x, image: lost.png}]\n")
        (boards / "worse.json").write_bytes(b"\xff")
        with pytest.raises(InvalidDocument) as refused:
            batch(str(boards), "--server", served.url)
        assert {problem.file for problem in refused.value.problems} == {"b.yaml", "worse.json"}, "not sent at all"
        (boards / "b.yaml").write_text(FILMS["b.yaml"])
        (boards / "worse.json").unlink()
        with pytest.raises(InvalidDocument) as refused:
            batch(str(boards), "--server", served.url)
        assert str(refused.value).startswith("bad.yaml:3: shot s1: frames: ")
        assert served.shop.ledger.jobs().jobs == ()

    @pytest.mark.slow
    def test_what_failed_is_told_and_the_same_command_renders_it(
            self, served: Served, boards: Path, tmp_path: Path) -> None:
        served.shop.painter.failing = True
        words = [str(boards), "-o", str(tmp_path / "out"), "--server", served.url]
        said = batch(*words, code=3)
        assert "b.yaml: partial: s1.clip: it burned" in said
        assert "partial: 2 of 3 films, 1 partial" in said
        served.shop.painter.failing = False
        assert "succeeded: 3 of 3 films" in batch(*words)

    def test_a_paused_batch_ends_the_command_and_resume_sees_it_through(
            self, served: Served, boards: Path, tmp_path: Path) -> None:
        said = batch(str(boards), "-o", str(tmp_path / "out"), "--gpu-seconds", "0", "--server", served.url, code=130)
        assert "its GPU-seconds are used up" in said
        [listed] = json.loads(batch("list", "--server", served.url, "--json"))
        batch("change", listed["id"], "--gpu-seconds", "inf", "--server", served.url)
        said = batch("resume", listed["id"], "-o", str(tmp_path / "again"), "--server", served.url, "--json")
        last = json.loads(said.splitlines()[-1])
        assert (last["event"], last["status"], set(last["paths"])) == ("result", "succeeded", set(FILMS))
        assert (tmp_path / "again" / "c.mp4").is_file()
        batch("delete", listed["id"], "--server", served.url)
        with pytest.raises(ServerRefused, match="no batch"):
            batch("status", listed["id"], "--server", served.url)

    @pytest.mark.slow
    def test_ctrl_c_leaves_it_running_there(self, served: Served, boards: Path) -> None:
        served.pause_s = 0.05
        site = RemoteBatches(served.url, open_remote(served.url))
        taken = site.submit(Wish(named=named_files([boards])))

        def stop(_: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(Interrupted, match=f"batch {taken.view.id} goes on at {served.url}"):
            site.follow(taken.view.id, stop, print)
        assert site.follow(taken.view.id, lambda _: None, print).status.value == "succeeded"

    def test_settings_do_not_go_with_a_server(self, served: Served, boards: Path) -> None:
        assert "do not go together" in batch(str(boards), "--profile", "ci", "--server", served.url, code=2)


class TestHere:
    @pytest.fixture
    def place(self, tmp_path: Path, migrated_file: Path) -> list[str]:
        shutil.copy(migrated_file, tmp_path / "state.db")
        return ["--set", f"data_dir={tmp_path}", "--server", ""]

    @pytest.fixture
    def rows(self, tmp_path: Path, place: list[str]) -> Iterator[Batches]:
        ledger = Ledger(f"sqlite:///{tmp_path / 'state.db'}")
        yield Batches(ledger)
        ledger.close()

    def test_every_problem_of_every_file_is_told_before_anything_is_kept(
            self, place: list[str], rows: Batches, boards: Path) -> None:
        (boards / "bad.yaml").write_text("shots:\n  - prompt: x\n    frames: 2\n  - {}\n")
        (boards / "b.yaml").write_text("shots: [{prompt: x, image: lost.png}]\n")
        with pytest.raises(InvalidDocument) as refused:
            batch(str(boards), *place)
        said = str(refused.value).splitlines()
        assert [line.partition(": ")[0] for line in said] == ["b.yaml:1", "bad.yaml:4"]
        assert rows.page().batches == ()

    def test_it_is_looked_at_and_steered_without_ray(
            self, place: list[str], rows: Batches, boards: Path, tmp_path: Path) -> None:
        site = LocalBatches(open_workplace(load_settings("laptop", [f"data_dir={tmp_path}"], {})))
        made = site.submit(Wish(named=named_files([boards], name="mine"))).view.id
        assert "3 films" in batch("list", *place)
        assert "paused" in batch("pause", made, *place)
        status = batch("status", made, *place)
        assert "c.fountain: queued" in status
        changed = json.loads(batch("change", made, "--concurrency", "2", "--gpu-seconds", "7", "--json", *place))
        assert (changed["concurrency"], changed["gpu_budget_s"]) == (2, 7.0)
        said = batch(str(boards), "--name", "mine", *place, code=130)
        assert "0 new jobs, 3 files" in said
        assert f"reelray batch resume {made}" in said
        assert "cancelled" in batch("cancel", made, *place)
        batch("report", made, "-o", str(tmp_path / "r.csv"), *place)
        assert (tmp_path / "r.csv").read_text().count("\n") == 3, "a line per shot; the script has none yet"
        assert "total" in batch("report", made, *place)
        batch("delete", made, *place)
        with pytest.raises(UnknownBatch):
            batch("status", made, *place)

    @pytest.mark.parametrize("words", [("x.yaml", "--concurrency", "-1"), ("report", "x", "--csv", "--json")])
    def test_what_cannot_be_is_refused(self, place: list[str], words: tuple[str, ...]) -> None:
        batch(*words, *place, code=2)


def test_files_of_a_directory_may_be_called_as_commands_by_their_path(boards: Path) -> None:
    (boards / "status").write_text("x")
    assert named_files([boards / "status"]).files[0].file.endswith("/status")


@pytest.mark.slow
def test_a_plain_log_tells_each_end_once(served: Served, boards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site, screen = RemoteBatches(served.url, open_remote(served.url)), PlainBatch(sys.stdout)
    taken = site.submit(Wish(named=named_files([boards])))
    screen.show(taken.view)
    view = site.follow(taken.view.id, screen.show, screen.note)
    screen.show(view)
    assert view.jobs[JobStatus.SUCCEEDED] == 3
    told = capsys.readouterr().out
    assert all(told.count(f"{name}: succeeded") == 1 for name in FILMS)
