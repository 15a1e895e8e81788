"""The page of edits without a browser: the form as plain forms send it, problems at their fields, an edit's page."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.desk import Shop, open_shop
from tests.edit_clips import red_ball, write_source
from tests.unit.http.test_edits import FRAMES, WISH, run
from tests.unit.http.test_page import NASTY, Page, page_of
from tests.unit.http.test_page_keys import SAME_SITE, basic
from workflows.durable.keys import Role

NOTHING = {"video": ("", b"", "application/octet-stream"), "mask_video": ("", b"", "application/octet-stream")}
"""What browsers send for files that nobody chose."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_source(red_ball(FRAMES).frames_THWC, tmp_path_factory.mktemp("clips") / "ball.mp4").read_bytes()


def sent(shop: Shop, clip: bytes | None = None, status: int = 303, key: Mapping[str, str] | None = None,
         **fields: object) -> str:
    """The form as a browser sends it, with a file or without; where it leads, or the page that comes back."""
    texts = {name: str(value) for name, value in {**WISH, "token": "t", "keep_audio": "true", **fields}.items()}
    files = {**NOTHING, **({} if clip is None else {"video": ("my ball.mp4", clip, "video/mp4")})}
    reply = shop.client.post("/edit", data=texts, files=files, headers={**(key or {}), **SAME_SITE},
                             follow_redirects=False)
    assert reply.status_code == status, reply.text
    return reply.headers.get("location", "") or reply.text


def finished(shop: Shop, clip: bytes) -> str:
    """An edit made on the page; its id."""
    job_id = sent(shop, clip).rpartition("/")[2]
    run(shop, job_id)
    shop.desk.views.forget(job_id)
    return job_id


def whys(text: str, field: str) -> str:
    """What stands under a field."""
    [found] = re.findall(rf'<div class="whys" id="why-{field}">(.*?)</div>', text, re.DOTALL)
    return re.sub(r"<[^>]*>", "", found)


def test_the_form_has_every_field_with_its_default_and_its_range(shop: Shop) -> None:
    page = Page(page_of(shop, "/edit"))
    fields = {tag["name"]: tag for kind in ("input", "select") for tag in page.all(kind) if tag.get("name")}
    told = {name: tuple(fields[name].get(what) for what in ("min", "max", "placeholder", "step"))
            for name in ("erode_kernel", "smoothing")}
    assert told == {"erode_kernel": ("0", "200", "0", "1"), "smoothing": ("0", "1", "0.7", "any")}
    assert "checked" in fields["keep_audio"]
    assert "checked" not in fields["invert_mask"]
    ids = {attributes["id"] for _, attributes in page.tags if attributes.get("id")}
    assert all(tag["for"] in ids for tag in page.all("label") if tag.get("for"))


def test_a_plain_form_with_a_file_becomes_an_edit_with_a_page_of_its_own(shop: Shop, clip: bytes) -> None:
    job_id = sent(shop, clip, smoothing="0.5", steps="").rpartition("/")[2]
    assert sent(shop, clip, smoothing="0.5", steps="").endswith(job_id), "the same form sent twice is one edit"
    waiting = page_of(shop, f"/films/{job_id}")
    assert re.findall(r'data-stage="(\w+)" data-state="(\w+)"', waiting) == [
        (stage, "waiting") for stage in ("extracting", "masking", "propagating", "editing", "smoothing", "saving")]
    assert f'hx-get="/films/{job_id}/mask"' in waiting
    run(shop, job_id)
    shop.desk.views.forget(job_id)
    text = page_of(shop, f"/films/{job_id}")
    page = Page(text)
    addresses = [tag["src"] for tag in page.all("video")] + [tag["href"] for tag in page.all("a") if "download" in tag]
    assert {str(address).partition("?")[0].rpartition("/")[2] for address in addresses} == {
        "video", "source", "mask", "report", "log"}
    for address in addresses:
        assert shop.client.get(str(address)).status_code == 200, address
    assert shop.client.get(f"/api/jobs/{job_id}/source").headers["content-type"] == "video/mp4"
    assert shop.client.get(f"/api/jobs/{job_id}/source").content == clip
    assert re.search(r"<dt>Changed outside the mask</dt><dd>0 pixels</dd>", text)
    assert "<dt>smoothing</dt><dd dir=\"auto\">0.5</dd>" in text
    [divider] = [tag for tag in page.all("div") if tag.get("id") == "divider"]
    assert (divider["role"], divider["tabindex"], divider["aria-valuenow"]) == ("slider", "0", "50")
    listed = page_of(shop, "/")
    assert "edit of a video" in listed
    [poster] = [str(tag["src"]) for tag in Page(listed).all("img") if tag.get("loading")]
    assert shop.client.get(poster).headers["content-type"] == "image/png"


def test_what_is_wrong_stands_at_its_field_and_the_video_need_not_be_sent_again(shop: Shop, clip: bytes) -> None:
    text = sent(shop, clip, 422, edit_prompt="a hat", erode_kernel="900", keep_audio="")
    assert "200" in whys(text, "erode_kernel")
    assert "<details class=\"card more\" id=\"more\" open>" in text
    fields = {tag["name"]: tag for tag in Page(text).all("input") if tag.get("name")}
    assert (fields["erode_kernel"]["value"], fields["erode_kernel"]["aria-invalid"]) == ("900", "true")
    assert "checked" not in fields["keep_audio"]
    upload = str(fields["input_video_path"]["value"])
    assert "my ball.mp4 is here already" in text
    api = shop.client.post("/api/edits", json={**WISH, "input_video_path": upload, "edit_prompt": "a hat"}).json()
    assert api["errors"][0]["detail"] in re.sub("&#39;", "'", sent(shop, None, 422, edit_prompt="a hat",
                                                                   input_video_path=upload))
    assert sent(shop, None, input_video_path=upload).startswith("/films/make-it-green-")
    assert "no video is chosen" in whys(sent(shop, None, 422), "input_video_path")
    assert "one of the two" in whys(sent(shop, clip, 422, result="job:x"), "input_video_path")
    assert "not a readable video" in whys(sent(shop, b"nothing", 422), "input_video_path")


def test_an_earlier_result_is_edited_again_and_another_way(shop: Shop, clip: bytes) -> None:
    first = finished(shop, clip)
    assert f'value="job:{first}"' in page_of(shop, "/edit")
    second = sent(shop, result=f"job:{first}", mask_prompt="green ball", edit_prompt="make it blue").rpartition("/")[2]
    assert shop.status(second)["edit"]["request"]["mask_prompt"] == "green ball"  # type: ignore[index, call-overload]
    result = shop.client.get(f"/api/jobs/{first}/video").content
    assert shop.client.get(f"/api/jobs/{second}/source").content == result
    again = page_of(shop, f"/edit?from={first}")
    assert 'value="make it green"' in again
    assert "my ball.mp4 is here already" in again
    reply = shop.client.post("/api/edits?dry_run=true", json={**WISH, "input_video_path": "job:none"})
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "#/input_video_path")


def test_what_people_write_into_an_edit_is_escaped(shop: Shop, clip: bytes) -> None:
    text = sent(shop, clip, 422, edit_prompt=NASTY, mask_prompt=NASTY, seed=NASTY)
    assert "<script>alert" not in text
    assert "<img src=x" not in text


def test_with_keys_an_edit_is_its_owners_alone(tmp_path: Path, migrated_file: Path, clip: bytes) -> None:
    shutil.copy(migrated_file, tmp_path / "state.db")
    shop = open_shop(tmp_path, tmp_path / "state.db", "http.require_keys=true")
    with shop.client:
        mine, other, reader = basic(shop, Role.USER), basic(shop, Role.USER, "other"), basic(shop, Role.READ)
        job_id = sent(shop, clip, key=mine).rpartition("/")[2]
        run(shop, job_id)
        for path in (f"/films/{job_id}", f"/api/jobs/{job_id}/source", f"/edit?from={job_id}"):
            assert shop.client.get(path, headers=mine).status_code == 200, path
            assert shop.client.get(path, headers=other).status_code == 404, path
        assert f"job:{job_id}" not in shop.client.get("/edit", headers=other).text
        assert "there is no video to edit" in sent(shop, None, 422, other, result=f"job:{job_id}")
        sent(shop, clip, 403, reader)
    shop.ledger.close()


def test_points_and_boxes_are_written_as_people_write_them(shop: Shop, clip: bytes) -> None:
    text = "120,80; not 40,30.5@2"
    job_id = sent(shop, clip, mask_prompt="", points=text, boxes="100, 60,140,100").rpartition("/")[2]
    request = shop.status(job_id)["edit"]["request"]  # type: ignore[index, call-overload]
    assert [(at["x"], at["y"], at["frame"], at["inside"]) for at in request["points"]] == [
        (120, 80, 0, True), (40, 30.5, 2, False)]
    assert request["boxes"] == [{"frame": 0, "left": 100, "top": 60, "right": 140, "bottom": 100}]
    again = {tag.get("name"): tag.get("value") for tag in Page(page_of(shop, f"/edit?from={job_id}")).all("input")}
    assert (again["points"], again["boxes"]) == (text, "100,60,140,100")
    for wrong in ("120", "a,b", "1,2,3", "1.2.3,4", "120,80@x"):
        assert "120,80; not 40,30@24" in whys(sent(shop, clip, 422, points=wrong), "points"), wrong
    assert "0 to 191 across" in whys(sent(shop, clip, 422, mask_prompt="", points="500,3"), "points")
