"""A Gradio page in front of a reelray server: write a storyboard, watch its bar, stop it, see the film.

    pip install "reelray[gradio]"
    reelray serve                       # in another terminal
    python examples/gradio_app.py       # --server URL for another one; $REELRAY_API_KEY where keys are asked for

A bar of Gradio belongs to the call that shows it, and no other thread may move it. So nothing is moved from outside:
`updates` is a generator, the job's events come to it on its own connection, and Gradio asks it for the next update.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from serve_app.client import ApiError, Client, Event, Film, ServerAway

EXAMPLE = (Path(__file__).parent / "first_film.yaml").read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Update:
    """What the page shows from now on."""

    progress: float = 0.0
    """0..1, never falls."""
    text: str = ""
    problem: str = ""
    """What went wrong so far; one line each."""
    job_id: str = ""
    film: Path | None = None


def updates(client: Client, storyboard: str, directory: Path) -> Iterator[Update]:
    """Render a storyboard (YAML) and tell of every step; the last update has the film, if there is one.

    Whoever stops asking leaves the job running. What is refused is an update too.
    """
    now = Update(text="sending the storyboard")
    yield now
    try:
        film = Film(name="film.yaml", media_type="application/yaml", content=storyboard.encode())
        job = client.submit(film)
        now = replace(now, text="queued", job_id=job["id"], problem="\n".join(job["warnings"]))
        yield now
        for event in client.events(job["id"]):
            now = after(now, event)
            yield now
        ended = client.job(job["id"])
        if ended["video"]:
            yield replace(now, text="fetching the film")
            now = replace(now, film=client.download(job["id"], directory / f"{job['id']}.mp4"))
        yield replace(now, progress=1.0, text=ended["status"])
    except (ApiError, ServerAway) as error:
        yield replace(now, text="stopped", problem=f"{now.problem}\n{error}".strip())


def after(now: Update, event: Event) -> Update:
    """What is shown once an event was heard."""
    data = event.data
    if event.name == "shot_update":
        shot = data["shot"]
        said = f"shot {shot['id']}: {shot['message'] or shot['status']}"
        return replace(now, progress=max(now.progress, data["progress"]), text=said)
    if event.name == "error":
        shot_id = data.get("storyboard_id")
        line = f"shot {shot_id}: {data['error']}" if shot_id else data["error"]
        return replace(now, problem=f"{now.problem}\n{line}".strip())
    return replace(now, text=data["message"]) if data.get("message") else now


def bar(update: Update) -> str:
    """The bar as HTML."""
    return (f'<progress max="1" value="{update.progress:.4f}" style="width:100%"></progress>'
            f"<div>{update.progress:.1%} {escape(update.text)}</div>"
            f'<pre style="color:#b00020;white-space:pre-wrap">{escape(update.problem)}</pre>')


def build(client: Client, directory: Path) -> Any:
    """The page, a `gradio.Blocks`; films are kept in `directory`."""
    import gradio

    with gradio.Blocks(title="reelray") as page:
        job_id = gradio.State("")
        storyboard = gradio.Code(EXAMPLE, language="yaml", label="Storyboard", lines=16)
        with gradio.Row():
            render = gradio.Button("Render", variant="primary")
            stop = gradio.Button("Cancel")
        shown = gradio.HTML()
        film = gradio.Video(label="Film")

        def rendered(text: str) -> Iterator[tuple[str, str | None, str]]:
            for update in updates(client, text, directory):
                yield bar(update), str(update.film) if update.film else None, update.job_id

        def cancelled(job: str) -> None:
            if job:
                client.cancel(job)

        render.click(rendered, storyboard, [shown, film, job_id], api_name="render", concurrency_limit=None)
        stop.click(cancelled, job_id, None, api_name="cancel", concurrency_limit=None)
    return page


def main() -> None:
    """Serve the page on this machine."""
    parser = argparse.ArgumentParser(description="A Gradio page in front of a reelray server.")
    parser.add_argument("--server", default="http://127.0.0.1:8000", help="where `reelray serve` answers")
    parser.add_argument("--port", type=int, default=7860)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reelray-gradio-") as directory:
        build(Client(asked.server), Path(directory)).launch(server_port=asked.port, allowed_paths=[directory])


if __name__ == "__main__":
    main()
