"""Pictures: uploaded, refused, named by storyboards, shown again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.http.forms import read_parts
from serve_app.http.pictures import PictureReply
from serve_app.http.problems import Refused
from serve_app.http.schemas import Problem
from serve_app.service.pictures import MAX_SCANS
from serve_app.submit import film_job
from tests.desk import Shop, open_shop
from workflows.durable.keys import Keys, Role
from workflows.types import Artifact, JobStatus

NOISE_HWC = np.random.default_rng(3).integers(0, 255, (40, 64, 3), np.uint8)
UNKNOWN = "0" * 64


def encoded(suffix: str, picture: Any = NOISE_HWC) -> bytes:
    done, data = cv2.imencode(suffix, picture)
    assert done
    return bytes(data)


PNG, JPEG = encoded(".png"), encoded(".jpg")


def bomb_png(width_px: int, height_px: int) -> bytes:
    """A PNG that is small as a file and huge as a picture."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width_px, height_px, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width_px // 8 + 1) * height_px), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def upload(shop: Shop, data: bytes, content_type: str = "image/png") -> Any:
    return shop.client.post("/api/pictures", content=data, headers={"content-type": content_type})


def film(image: str) -> dict[str, Any]:
    return {"shots": [{"prompt": "a red circle"}, {"prompt": "a blue star", "image": image}]}


@pytest.fixture
def small_shop(tmp_path: Path, migrated_file: Path) -> Iterator[Shop]:
    """One that takes pictures up to 10 kB and 0.003 megapixels."""
    (tmp_path / "state.db").write_bytes(migrated_file.read_bytes())
    shop = open_shop(tmp_path, tmp_path / "state.db", "http.max_picture_kb=10", "http.max_picture_megapixels=0.003")
    with shop.client:
        yield shop
    shop.ledger.close()


@pytest.mark.parametrize(("data", "kind"), [(PNG, "image/png"), (JPEG, "image/jpeg")])
def test_a_picture_is_kept_under_the_digest_of_its_bytes_and_comes_back(shop: Shop, data: bytes, kind: str) -> None:
    reply = upload(shop, data, kind)
    assert reply.status_code == 201, reply.text
    kept = PictureReply.model_validate_json(reply.content)
    assert kept == PictureReply(id=hashlib.sha256(data).hexdigest(), url=reply.headers["location"], media_type=kind,
                                width=64, height=40, size_bytes=len(data))
    found = shop.client.get(kept.url)
    assert (found.content, found.headers["content-type"]) == (data, kind)
    assert shop.client.get(kept.url, headers={"Range": "bytes=1-3"}).content == data[1:4]
    assert shop.client.get(kept.url, headers={"If-None-Match": found.headers["etag"]}).status_code == 304
    assert upload(shop, data, kind).json() == reply.json()


@pytest.mark.parametrize("said", ["image/png", "application/octet-stream", None])
def test_a_form_with_one_file_is_the_same_upload(shop: Shop, said: str | None) -> None:
    reply = shop.client.post("/api/pictures", files={"file": ("my picture.png", PNG, said) if said else PNG})
    assert (reply.status_code, reply.json()) == (201, upload(shop, PNG).json())


def test_a_turned_jpeg_has_the_size_that_is_seen(shop: Shop) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:]
    reply = upload(shop, turned, "image/jpeg").json()
    assert (reply["width"], reply["height"]) == (40, 64)


@pytest.mark.parametrize(("data", "kind", "status"), [
    (b"", "image/png", 422), (b"GIF89a", "image/png", 422), (PNG[:-8], "image/png", 422),
    (JPEG[:200], "image/jpeg", 422), (PNG[:40] + bytes(len(PNG) - 52) + PNG[-12:], "image/png", 422),
    (PNG, "image/jpeg", 422), (JPEG, "image/png", 422),
    (encoded(".webp"), "image/png", 422), (PNG, "image/webp", 415), (PNG, "text/plain", 415), (PNG, "", 415),
    (encoded(".png", np.dstack([NOISE_HWC, NOISE_HWC[..., :1]])), "image/png", 422),
    (b"\x89PNG\r\n\x1a\n" + bytes(30) + b"IEND\xaeB`\x82", "image/png", 422),
    (b"\xff\xd8\xff" + b"\xff" * 40 + JPEG[2:], "image/jpeg", 422),
    (JPEG[:-2] + b"\xff\xda" * (MAX_SCANS + 1) + JPEG[-2:], "image/jpeg", 422),
    (b"--x\r\n\r\n", "multipart/form-data; boundary=x", 400), (PNG, "multipart/form-data", 400),
    (b"--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n" + PNG, "multipart/form-data; boundary=x", 400),
    (b"--x\r\nContent-Disposition: form-data; name=\"f\"\r\n\r\na\r\n--x--\r\n", "multipart/form-data; boundary=x",
     400),
    (b"--x\r\nContent-Disposition: form-data; name=\"file\"\r\nContent-Type: text/html\r\n\r\na\r\n--x--\r\n",
     "multipart/form-data; boundary=x", 415),
], ids=["empty", "gif", "cut-png", "cut-jpeg", "zeroed-png", "png-as-jpeg", "jpeg-as-png", "webp", "webp-type", "text",
        "no-type", "transparent", "no-header", "padded-jpeg", "many-scans", "cut-form", "no-boundary", "open-form",
        "other-part", "html-part"])
def test_what_is_no_picture_is_refused_and_nothing_is_kept(
        shop: Shop, tmp_path: Path, data: bytes, kind: str, status: int) -> None:
    reply = shop.client.post("/api/pictures", content=data, headers={"content-type": kind} if kind else {})
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json"), reply.text
    assert Problem.model_validate_json(reply.content).detail
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_a_picture_that_is_large_only_when_unpacked_is_refused_before_it_is(shop: Shop) -> None:
    bomb = bomb_png(40_000, 40_000)
    assert len(bomb) < 250_000
    reply = upload(shop, bomb)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid-picture")
    assert "40000x40000" in reply.json()["detail"]
    assert reply.json()["errors"][0]["nearest"] == "at most 34 megapixels (http.max_picture_megapixels)"
    sof = JPEG.index(b"\xff\xc0")
    huge = JPEG[:sof + 5] + b"\xff\xff\xff\xff" + JPEG[sof + 9:]
    assert "65535x65535" in upload(shop, huge, "image/jpeg").json()["detail"]


def test_limits_are_settings(small_shop: Shop) -> None:
    assert upload(small_shop, PNG).status_code == 201, "64x40 is 2560 pixels"
    assert upload(small_shop, encoded(".png", NOISE_HWC.repeat(2, 0))).status_code == 422
    longer = PNG[:-12] + bytes(10_000) + PNG[-12:]
    assert upload(small_shop, longer).status_code == 422
    assert upload(small_shop, bytes(30_000)).status_code == 413
    assert small_shop.client.post("/api/pictures", content=iter([bytes(15_000), bytes(15_000)]),
                                  headers={"content-type": "image/png"}).status_code == 413
    assert small_shop.client.post("/api/films", content=bytes(30_000),
                                  headers={"content-type": "text/plain"}).status_code == 422, "other bodies: their own"


def test_a_storyboard_names_an_uploaded_picture(shop: Shop) -> None:
    picture = upload(shop, PNG).json()
    job_id = shop.submit(film(f"picture:{picture['id']}"))
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    assert shop.client.get(f"/api/jobs/{job_id}/shots/s2/keyframe").content == PNG
    upload(shop, JPEG, "image/jpeg")
    other = f"picture:{hashlib.sha256(JPEG).hexdigest()}"
    changed = shop.client.patch(f"/api/films/{job_id}/shots/s2", json={"image": other})
    assert (changed.status_code, changed.json()["nodes"]) == (202, ["s2.clip", "compose"])
    assert shop.client.get(f"/api/jobs/{job_id}/shots/s2/keyframe").content == JPEG


def test_an_uploaded_picture_and_one_of_this_machine_are_one_in_the_store(shop: Shop, tmp_path: Path) -> None:
    picture = upload(shop, PNG).json()
    job_id = shop.submit(film(f"picture:{picture['id']}"))
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "film.yaml").write_text("shots:\n  - prompt: a red circle\n  - {prompt: a blue star, image: a.png}\n")
    local = film_job(tmp_path / "film.yaml", shop.settings, shop.store).new.nodes
    served = shop.ledger.nodes(job_id)
    assert [node.payload for node in local] == [node.payload for node in served]
    assert Artifact.from_json(served[1].payload["image"]).sha256 == picture["id"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("image", "said"), [
    (f"picture:{UNKNOWN}", "POST /api/pictures takes it"),
    ("picture:../../etc/passwd", "no picture '../../etc/passwd'"),
    ("picture:", "no picture ''"), ("a.png", "write `image: picture:ID`"), ("/etc/passwd", "name a file of the server"),
])
def test_a_picture_that_is_not_here_is_a_problem_of_its_field(shop: Shop, image: str, said: str) -> None:
    reply = shop.client.post("/api/films", json=film(image))
    [error] = reply.json()["errors"]
    assert (reply.status_code, error["pointer"], error["shot"]) == (422, "#/shots/1/image", "s2")
    assert said in error["detail"]
    yaml = f"shots:\n  - prompt: a red circle\n  - prompt: a blue star\n    image: '{image}'\n"
    reply = shop.client.post("/api/films", content=yaml, headers={"content-type": "application/yaml"})
    assert reply.json()["errors"][0]["line"] == 4


@pytest.mark.parametrize(("name", "status"), [(UNKNOWN, 404), ("..%2f..%2fetc", 404), ("A" * 64, 422), ("x", 422)])
def test_what_was_not_uploaded_is_not_found(shop: Shop, name: str, status: int) -> None:
    reply = shop.client.get(f"/api/pictures/{name}")
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")


def test_who_may_only_look_uploads_nothing(tmp_path: Path, migrated_file: Path) -> None:
    (tmp_path / "state.db").write_bytes(migrated_file.read_bytes())
    shop = open_shop(tmp_path, tmp_path / "state.db", "http.require_keys=true")
    book = Keys(shop.ledger.database)
    tokens = {role: book.create(role.value, role).token for role in Role}
    with shop.client:
        assert upload(shop, PNG).status_code == 401
        for role, status in {Role.READ: 403, Role.USER: 201, Role.ADMIN: 201}.items():
            reply = shop.client.post("/api/pictures", content=PNG, headers={
                "content-type": "image/png", "authorization": f"Bearer {tokens[role]}"})
            assert reply.status_code == status
    shop.ledger.close()


def test_pictures_are_decoded_few_at_a_time(closed_shop: Shop) -> None:
    async def together() -> set[str]:
        kept = await asyncio.gather(*(closed_shop.desk.pictures.take_in(PNG) for _ in range(6)))
        return {picture.id for picture in kept}

    assert asyncio.run(together()) == {hashlib.sha256(PNG).hexdigest()}


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"--", b"x", b"--x", b"\0", b"\xff", b"\x1a", b"\x0b",
                                      b"\x85", b": ", b"\x1c", b"\r\n--", b"--xy"])).map(b"".join))
def test_a_file_in_a_form_keeps_every_byte(data: bytes) -> None:
    boundary = "boundary-that-is-nowhere-in-it"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
    body = head + data + f"\r\n--{boundary}--\r\n".encode()
    assert read_parts(body, f"multipart/form-data; boundary={boundary}")["file"].data == data


@given(body=st.binary(max_size=300))
def test_no_bytes_make_the_form_reader_fail_otherwise_than_by_refusing(body: bytes) -> None:
    for data in (body, b"--x\r\n" + body + b"\r\n--x--\r\n"):
        with contextlib.suppress(Refused):
            read_parts(data, "multipart/form-data; boundary=x")
