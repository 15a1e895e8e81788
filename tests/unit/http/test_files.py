"""Files over HTTP: the right bytes with the right type, ranges, entity tags, and no path to any other file."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.http.artifacts import asked_range
from tests.desk import Shop
from workflows.media.decode import read_picture
from workflows.types import Artifact

TAG = '"t"'


@pytest.fixture
def film(shop: Shop) -> str:
    return shop.film()


def stored(shop: Shop, job_id: str, node_id: str) -> Artifact:
    artifact = next(node for node in shop.ledger.nodes(job_id) if node.id == node_id).artifact
    assert artifact is not None
    return artifact


@pytest.mark.parametrize(("path", "node_id", "media_type"), [
    ("video", "compose", "video/mp4"), ("shots/s1/clip", "s1.clip", "video/mp4"),
    ("shots/s1/keyframe", "s1.keyframe", "image/png"),
])
def test_a_file_comes_whole_with_type_length_and_tag(
        shop: Shop, film: str, path: str, node_id: str, media_type: str) -> None:
    artifact = stored(shop, film, node_id)
    reply = shop.client.get(f"/api/jobs/{film}/{path}")
    assert (reply.status_code, reply.headers["content-type"]) == (200, media_type)
    assert reply.content == shop.store.fetch(artifact).read_bytes()
    assert reply.headers["content-length"] == str(artifact.size_bytes)
    assert (reply.headers["etag"], reply.headers["accept-ranges"]) == (f'"{artifact.sha256}"', "bytes")
    head = shop.client.head(f"/api/jobs/{film}/{path}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == reply.headers["content-length"]


def test_a_part_comes_as_a_part(shop: Shop, film: str) -> None:
    whole = shop.client.get(f"/api/jobs/{film}/video").content
    for asked, part in (("bytes=0-99", whole[:100]), ("bytes=100-", whole[100:]), ("bytes=-50", whole[-50:])):
        reply = shop.client.get(f"/api/jobs/{film}/video", headers={"Range": asked})
        assert (reply.status_code, reply.content) == (206, part), asked
        assert reply.headers["content-range"].endswith(f"/{len(whole)}")
    beyond = shop.client.get(f"/api/jobs/{film}/video", headers={"Range": f"bytes={len(whole)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(whole)}")
    assert beyond.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("asked", "expected"), [
    ({}, (0, 10)), ({"range": "bytes=2-4"}, (2, 5)), ({"range": "bytes=2-99"}, (2, 10)),
    ({"range": "bytes=-3"}, (7, 10)),
    ({"range": "bytes=-99"}, (0, 10)), ({"range": "bytes=-0"}, None), ({"range": "bytes=10-"}, None),
    ({"range": "bytes=4-2"}, (0, 10)), ({"range": "bytes=-"}, (0, 10)), ({"range": "items=1-2"}, (0, 10)),
    ({"range": "bytes=0-1,4-5"}, (0, 10)), ({"range": f"bytes={'9' * 30}-"}, (0, 10)),
    ({"range": "bytes=2-4", "if-range": TAG}, (2, 5)), ({"range": "bytes=2-4", "if-range": '"old"'}, (0, 10)),
], ids=str)
def test_ranges_are_read_as_the_standard_says(asked: dict[str, str], expected: tuple[int, int] | None) -> None:
    assert asked_range(asked, TAG, 10) == expected


@pytest.mark.parametrize("condition", ["{tag}", "W/{tag}", '"other", {tag}', "*"])
def test_a_copy_that_is_still_good_is_not_sent_again(shop: Shop, film: str, condition: str) -> None:
    tag = shop.client.get(f"/api/jobs/{film}/video").headers["etag"]
    reply = shop.client.get(f"/api/jobs/{film}/video", headers={"If-None-Match": condition.format(tag=tag)})
    assert (reply.status_code, reply.content, reply.headers["etag"]) == (304, b"", tag)


@pytest.mark.parametrize("shot", ["s1", "s2"], ids=["of the keyframe", "of the clip"])
def test_a_thumbnail_is_made_once_and_small(shop: Shop, film: str, shot: str, tmp_path: Path) -> None:
    reply = shop.client.get(f"/api/jobs/{film}/shots/{shot}/thumbnail")
    assert reply.headers["content-type"] == "image/png"
    (tmp_path / "small.png").write_bytes(reply.content)
    assert max(read_picture(tmp_path / "small.png").shape) <= 320
    assert shop.client.get(f"/api/jobs/{film}/shots/{shot}/thumbnail").headers["etag"] == reply.headers["etag"]


def test_what_is_not_made_yet_is_not_found_and_says_why(shop: Shop) -> None:
    job_id = shop.submit()
    assert "not made yet" in shop.client.get(f"/api/jobs/{job_id}/video").json()["detail"]
    assert "shot s1 has no clip, or not yet" in shop.client.get(f"/api/jobs/{job_id}/shots/s1/clip").json()["detail"]
    unknown = shop.client.get(f"/api/jobs/{job_id}/shots/s9/clip")
    assert (unknown.status_code, "nearest valid: s1, s2" in unknown.json()["detail"]) == (404, True)


def test_a_file_that_left_the_store_is_not_found(shop: Shop, film: str) -> None:
    shop.store.fetch(stored(shop, film, "compose")).unlink()
    reply = shop.client.get(f"/api/jobs/{film}/video")
    assert (reply.status_code, reply.json()["code"]) == (404, "artifact-missing")


@pytest.mark.parametrize("path", [
    "shots/s1/..%2f..%2fstate.db", "shots/..%2f..%2f/clip", "shots/s1/manifest.json", "..%2f..%2fstate.db",
])
def test_no_path_leads_to_another_file(shop: Shop, film: str, path: str) -> None:
    assert shop.client.get(f"/api/jobs/{film}/{path}").status_code in (404, 422)
