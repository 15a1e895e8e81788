"""The page without a browser: what it shows, that it escapes, that its forms work as plain forms."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from serve_app.service.films import Order, Sent
from serve_app.service.pages import Pages, eta_text, span
from serve_app.web import EXAMPLES, STATIC, TEMPLATES
from tests.desk import TWO_SHOTS, Shop, step
from workflows.durable.journal import Journal
from workflows.durable.leases import Leases
from workflows.types import JobStatus, Priority

ROOT = Path(__file__).resolve().parents[3]
HX = {"HX-Request": "true"}
NASTY = '<script>alert(1)</script>"\'><img src=x onerror=alert(2)>{{ 7 * 7 }} 画面 עברית'
WRONG = "title: A\nshots:\n  - prompt: x\n    frames: 80\n"


class Page(HTMLParser):
    """A page's tags, as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(shop: Shop, path: str, status: int = 200) -> str:
    reply = shop.client.get(path)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "text/html; charset=utf-8"), reply.text
    return reply.text


def sent(shop: Shop, path: str, status: int = 303, **fields: str) -> str:
    """A form as a browser without scripts sends it; where it leads."""
    reply = shop.client.post(path, data=fields, follow_redirects=False)
    assert reply.status_code == status, reply.text
    return reply.headers.get("location", "") or reply.text


@pytest.mark.parametrize("path", ["/", "/new", "/new?form=script", "/films/{}", "/films/none", "/?status=bad"])
def test_nothing_inline_and_nothing_from_elsewhere_may_run(shop: Shop, path: str) -> None:
    reply = shop.client.get(path.format(shop.film()))
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    page = Page(reply.text)
    assert all(script["src"] for script in page.all("script"))
    assert not page.all("style")
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href", "action", "hx-get", "hx-post", "sse-connect"):
            assert not (attributes.get(name) or "").startswith(("http", "//", "data:", "javascript:"))


@pytest.mark.parametrize("path", sorted(path.name for path in TEMPLATES.iterdir()))
def test_no_template_says_that_a_text_is_safe(path: str) -> None:
    assert not re.search(r"\|\s*safe|autoescape", (TEMPLATES / path).read_text(encoding="utf-8"))


def test_every_file_that_a_page_names_is_served(shop: Shop) -> None:
    page = Page(page_of(shop, "/"))
    names = [tag.get("src") or tag.get("href") for kind in ("script", "link", "img") for tag in page.all(kind)]
    assert len(names) >= 6
    for name in names:
        reply = shop.client.get(str(name))
        assert (reply.status_code, reply.headers["cache-control"]) == (200, "no-cache"), name
        again = shop.client.get(str(name), headers={"If-None-Match": reply.headers["etag"]})
        assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache"), name
    assert shop.client.get("/static/../page.css").status_code == 404
    assert shop.client.get("/static/%2e%2e/templates/base.html").status_code == 404


def test_files_of_others_come_with_their_licences() -> None:
    vendored = {path.name for path in (STATIC / "vendor").iterdir()}
    assert vendored == {"htmx.min.js", "htmx.LICENSE", "sse.min.js", "sse.LICENSE", "README.md"}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.iterdir()))
def test_the_editors_examples_are_the_repositorys(name: str) -> None:
    assert (EXAMPLES / name).read_bytes() == (ROOT / "examples" / name).read_bytes()


def test_what_people_write_is_escaped_everywhere(shop: Shop) -> None:
    job_id = shop.film({"title": NASTY, "shots": [{"prompt": NASTY, "caption": NASTY}]})
    for path in ("/", f"/films/{job_id}", f"/films/{job_id}/now", f"/films/{job_id}/log", f"/films/{job_id}/shots/s1",
                 f"/new?film={job_id}"):
        text = page_of(shop, path)
        assert "<script>alert" not in text, path
        assert "<img src=x" not in text, path
        assert "49 画面" not in text, path
    assert "{{ 7 * 7 }} 画面 עברית" in page_of(shop, f"/films/{job_id}")
    for text in (f"shots:\n  - {NASTY}", f'{{"{NASTY}": 1}}', f"shots:\n  - prompt: x\n    {NASTY}: 3"):
        assert "<script>alert" not in sent(shop, "/new", 422, text=text, form="storyboard")
    assert "<img src=x" not in page_of(shop, "/films/%3Cimg src=x onerror=alert(2)%3E", 404)


def test_an_empty_house_says_how_to_begin(shop: Shop) -> None:
    assert "No films yet" in page_of(shop, "/")
    assert "Nothing here" in page_of(shop, "/?status=failed")


def test_films_are_listed_filtered_and_turned_over(shop: Shop) -> None:
    shop.film()
    for number in range(24):
        shop.submit({**TWO_SHOTS, "title": f"Film {number}"})
    first = page_of(shop, "/")
    assert first.count('class="tile"') == 24
    assert 'hx-trigger="every 3s"' in first, "something moves"
    older = next(link["href"] for link in Page(first).all("a") if link.get("rel") == "next")
    last = page_of(shop, str(older))
    assert last.count('class="tile"') == 1
    assert "/thumbnail" in last, "the finished film has a picture"
    assert "every 3s" not in last
    assert page_of(shop, "/?status=succeeded").count('class="tile"') == 1


@pytest.mark.parametrize("form", ["storyboard", "script"])
def test_the_example_is_planned_at_once(shop: Shop, form: str) -> None:
    text = page_of(shop, f"/new?form={form}")
    assert "To make" in text
    assert "in the store" in text


def test_a_dry_run_tells_what_the_store_has(shop: Shop) -> None:
    shop.film()
    fields = {"form": "storyboard", "text": (
        "shots:\n  - {prompt: a red circle moves left over a blue background, mode: keyframe}\n"
        "  - {prompt: a green circle moves left over a blue background}\n")}
    text = sent(shop, "/new/check", 200, **fields)
    assert text.count('class="part has"') == 2 + 1, "keyframe and clip; and one in the legend"
    assert text.count('class="part todo"') == 1 + 1
    fragment = shop.client.post("/new/check", data=fields, headers=HX).text
    assert fragment.lstrip().startswith("<section")
    assert not shop.client.get("/api/jobs?status=queued").json()["jobs"], "nothing was queued"


def test_a_wrong_line_is_shown_where_it_is(shop: Shop) -> None:
    text = sent(shop, "/new", 422, text=WRONG.replace("\n", "\r\n"), form="storyboard")
    assert 'data-line="4"' in text
    assert 'data-lines="4 "' in text
    assert "<code class=\"source\" dir=\"auto\">frames: 80</code>" in text
    assert "frames: 80\n" in text, "and the editor still has it"


def test_a_form_makes_a_film_once(shop: Shop) -> None:
    text = "shots:\n  - prompt: a red circle\n"
    where = sent(shop, "/new", text=text, form="storyboard", token="t")
    assert where == sent(shop, "/new", text=text, form="storyboard", token="t")
    assert where != sent(shop, "/new", text=text, form="storyboard", token="u")
    assert "Waiting" in page_of(shop, where)
    script = sent(shop, "/new", text="A red circle moves left over a blue background.", form="script", token="t")
    assert "broken into shots" in page_of(shop, script)
    assert ("wake", "") in shop.hints.told


@pytest.mark.parametrize(("path", "fields", "status"), [
    ("/new", {"text": "x", "form": "poem"}, 422), ("/new", {"text": "", "form": "storyboard"}, 422),
    ("/new", {f"f{n}": "" for n in range(30)}, 400), ("/films/none/cancel", {}, 404), ("/films/none/retry", {}, 404),
    ("/films/none/delete", {}, 404), ("/films/none/shots/s1", {"prompt": "x"}, 404),
    ("/films/{}/shots/s9", {"prompt": "x"}, 404), ("/films/{}/shots/s1", {"prompt": " "}, 422),
    ("/films/{}/shots/s1/takes/7", {}, 404), ("/films/{}/shots/s1/takes/x", {}, 422),
], ids=lambda value: str(value)[:30])
def test_what_cannot_be_is_refused_as_a_page_and_as_a_notice(
        shop: Shop, path: str, fields: dict[str, str], status: int) -> None:
    path = path.format(shop.film())
    assert "<!doctype html>" in sent(shop, path, status, **fields)
    if path.startswith("/films"):
        reply = shop.client.post(path, data=fields, headers=HX)
        assert (reply.status_code, reply.headers["hx-retarget"]) == (status, "#notice")
        assert reply.text.startswith('<div id="problem"')


@pytest.mark.parametrize("body", [
    b"", b"\xff\xfe", b"text=%00&form=storyboard", b"text=%ED%A0%80&form=script", b"text=%FF&form=storyboard&token=%00",
    b"text=shots%3A%0A+-+prompt%3A+%22%5Cud800%22&form=storyboard", b"prompt=%00&caption=%ED%A0%80",
    b"text=" + b"a" * 200_000 + b"&form=script"], ids=lambda body: body[:30].decode("latin-1"))
def test_no_form_breaks_the_page(shop: Shop, body: bytes) -> None:
    job_id = shop.film()
    for path in ("/new", "/new/check", f"/films/{job_id}/shots/s1", f"/films/{job_id}/shots/s1/takes/0"):
        reply = shop.client.post(path, content=body, follow_redirects=False)
        assert reply.status_code < 500, (path, reply.text)
        assert reply.status_code == 303 or reply.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(("path", "status"), [
    ("/?cursor=zzz", 422), ("/?status=%00", 422), ("/new?film=%ED%A0%80", 404), ("/new?form=%00", 422),
    ("/films/%ED%A0%80", 404), ("/films/" + "a" * 300, 422), ("/films/%0d%0aX:y", 404)])
def test_an_address_that_is_none_is_said_so_on_a_page(shop: Shop, path: str, status: int) -> None:
    assert "All films" in page_of(shop, path, status)


def test_a_waiting_film_has_its_place_in_the_queue(shop: Shop) -> None:
    first, second = shop.submit(), shop.submit()
    assert "next in the queue" in page_of(shop, f"/films/{first}")
    assert "number 2 in the queue" in page_of(shop, f"/films/{second}/now")


def test_a_film_that_moves_listens_to_its_events_and_one_that_is_over_does_not(shop: Shop) -> None:
    job_id = shop.submit()
    text = page_of(shop, f"/films/{job_id}")
    assert f'sse-connect="/api/jobs/{job_id}/events"' in text
    assert 'id="cancel"' in text
    shop.render(job_id)
    shop.desk.views.forget(job_id)
    text = page_of(shop, f"/films/{job_id}")
    assert "sse-connect" not in text
    assert 'id="player"' in text
    assert 'id="cancel"' not in text


async def test_a_running_shot_shows_its_step(closed_shop: Shop) -> None:
    desk = closed_shop.desk
    draft = desk.films.draft(Sent(text="shots:\n  - prompt: a red circle\n", file="film.yaml", is_script=False))
    job = desk.films.submit(draft, Order(token="a" * 32, key_id=""))
    [claim] = Leases(closed_shop.ledger.database, lease_s=60, interruption_limit=3).claim(1, Priority.INTERACTIVE)
    Journal(closed_shop.ledger.database).start(claim, closed_shop.ledger.nodes(job.id)[0], key="k")
    await closed_shop.board.board.report([step(job.id, "s1.clip", 12)])
    film = await Pages(desk).film(job.id)
    assert (film.word, film.stage, film.is_active) == ("Rendering", "Rendering the shots", True)
    [shot] = film.shots
    assert (shot.word, shot.percent, shot.says) == ("Rendering", 60.0, "diffusion step 12/20 (timestep 988.00)")
    await desk.close()


def test_a_failed_shot_says_why_and_is_tried_again_by_itself(shop: Shop) -> None:
    shop.painter.failing = True
    job_id = shop.film()
    text = page_of(shop, f"/films/{job_id}")
    assert "Shots missing" in text
    assert text.count("s2.clip: it burned") == 2, "above all shots, and at its own"
    assert 'href="#shot-s2"' in text
    shop.painter.failing = False
    shop.painter.made.clear()
    assert sent(shop, f"/films/{job_id}/shots/s2/retry") == f"/films/{job_id}"
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    assert sorted(shop.painter.made) == ["compose", "s2.clip"]


def test_a_shot_is_changed_and_its_old_take_chosen_again(shop: Shop) -> None:
    job_id = shop.film()
    sent(shop, f"/films/{job_id}/shots/s2", prompt="a green star falls down over a black background", caption="")
    shop.painter.made.clear()
    shop.render(job_id)
    assert sorted(shop.painter.made) == ["compose", "s2.clip"]
    shop.desk.views.forget(job_id)
    card = page_of(shop, f"/films/{job_id}/shots/s2")
    assert "a green star" in card
    assert "Take 1" in card
    sent(shop, f"/films/{job_id}/shots/s2/takes/1")
    shop.painter.made.clear()
    shop.render(job_id)
    assert shop.painter.made == []
    shop.desk.views.forget(job_id)
    assert "a yellow star" in page_of(shop, f"/films/{job_id}/shots/s2")
    sent(shop, f"/films/{job_id}/shots/s1/retry")
    shop.painter.made.clear()
    shop.render(job_id)
    assert "s1.clip" in shop.painter.made, "a shot that succeeded gets a new take"


def test_a_film_is_cancelled_continued_begun_anew_and_forgotten(shop: Shop) -> None:
    job_id = shop.submit()
    sent(shop, f"/films/{job_id}/cancel")
    assert ("cancelled", job_id) in shop.hints.told
    assert "Cancelled" in page_of(shop, f"/films/{job_id}")
    sent(shop, f"/films/{job_id}/retry")
    reply = shop.client.post(f"/films/{job_id}/delete", headers=HX)
    assert (reply.status_code, "cancel it, or wait" in reply.text) == (409, True), reply.text
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    assert "a yellow star falls down" in page_of(shop, f"/new?film={job_id}")
    assert sent(shop, f"/films/{job_id}/delete") == "/"
    page_of(shop, f"/films/{job_id}", 404)


def test_the_log_is_shown(shop: Shop) -> None:
    assert "job: queued" in page_of(shop, f"/films/{shop.submit()}/log")


@pytest.mark.parametrize(("seconds", "text"), [(0, "1 s"), (42.4, "42 s"), (200, "3 min"), (5000, "1 h 23 min")])
def test_a_length_of_time_can_be_grasped(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_the_time_left_has_a_bound_where_it_differs() -> None:
    assert eta_text({"p50_s": 40, "p90_s": 61}) == "about 40 s left, at most 61 s"
    assert eta_text({"p50_s": 40.1, "p90_s": 40.2}) == "about 40 s left"
    assert eta_text(None) == ""


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, as WCAG defines it."""
    parts = [int(colour[place:place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("ink", "ground"), [
    ("ink", "paper"), ("ink", "sheet"), ("soft", "paper"), ("soft", "sheet"), ("soft", "idle-soft"),
    ("accent", "paper"), ("accent", "accent-soft"), ("accent-ink", "accent"), ("good", "good-soft"),
    ("bad", "bad-soft"), ("bad", "sheet"), ("warn", "warn-soft")])
def test_every_text_stands_out_from_its_ground(scheme: int, ink: str, ground: str) -> None:
    """WCAG AA: 4.5 to 1."""
    css = (STATIC / "page.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
    light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_pictures_without_a_film_are_shown_on_the_board_and_nothing_is_played(shop: Shop) -> None:
    board = {"title": "Stills", "shots": [{"prompt": "a red circle moves left over a blue background"}]}
    job_id = shop.client.post("/api/films?stages=story,images", json=board).json()["id"]
    shop.render(job_id)
    page = shop.client.get(f"/films/{job_id}").text
    assert f'src="/api/jobs/{job_id}/shots/s1/thumbnail' in page
    assert "<video" not in page


def test_a_draft_is_made_looked_at_and_rendered_final(shop: Shop) -> None:
    text = "shots: [{prompt: a red circle}, {prompt: a yellow star}]"
    url = sent(shop, "/new", form="storyboard", text=text, token="t", tier="draft")
    assert sent(shop, "/new", form="storyboard", text=text, token="t") != url, "the film itself is another job"
    job_id = url.rsplit("/", 1)[1]
    shop.render(job_id)
    page = page_of(shop, url)
    assert page.count("<span>draft</span>") == 2
    assert {"promote", "final-s1", "final-s2"} <= {button.get("id") for button in Page(page).all("button")}
    sent(shop, f"{url}/shots/s1/promote")
    shop.render(job_id)
    shop.desk.views.forget(job_id)
    page = page_of(shop, url)
    assert page.count("<span>draft</span>") == 1
    assert "Render the other 1 final" in page
    sent(shop, f"{url}/promote")
    shop.render(job_id)
    shop.desk.views.forget(job_id)
    page = page_of(shop, url)
    assert "draft" not in page.replace("drafts", "")
    assert "Take 1" in page
