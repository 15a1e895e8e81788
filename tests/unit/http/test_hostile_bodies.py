"""Bodies that are meant to break their readers: each route that reads one says what is wrong with it, and soon."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.desk import Shop, open_shop

DEEP = 100_000
ANSWER_S = 20.0
ANSWER_BYTES = 100_000
BODIES: dict[str, bytes] = {
    "deep arrays": b"[" * DEEP, "deep arrays, closed": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a deep value": b'{"prompt":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "NaN": b'{"prompt": NaN, "seed": NaN, "shots": NaN, "url": NaN}', "NaN alone": b"NaN",
    "endless": b'{"prompt": Infinity, "fps": -Infinity, "shots": Infinity, "url": 1e999}',
    "a key twice": b'{"prompt": 1, "prompt": 2, "shots": 1, "shots": 2, "url": 3, "url": 4}',
    "no UTF-8": b'{"prompt": "\xff\xfe", "shots": ["\xff"], "url": "\xff"}',
    "half a character": b'{"prompt": "\\ud800", "shots": ["\\ud800"], "url": "\\ud800", "\\udfff": 1}',
    "nul": b'{"prompt": "\\u0000", "shots": ["\\u0000"], "url": "\\u0000"}',
    "a huge integer": b'{"seed": ' + b"9" * 100_000 + b', "shots": ' + b"9" * 5000 + b', "url": 1}',
    "a huge exponent": b'{"seed": 1e99999999, "shots": 1e99999999, "url": 1e99999999}',
    "a long key": b'{"' + b"k" * 500_000 + b'": 1}', "many keys": b"{" + b",".join(
        b'"k%d": 1' % n for n in range(20_000)) + b"}",
    "nothing": b"", "a text": b'"x"', "null": b"null", "cut off": b'{"prompt": "x', "two values": b"{} {}",
    "tabs and nuls": b"\t\0\0\0"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[Shop]:
    """One for all: nothing that is sent here may make anything."""
    directory = tmp_path_factory.mktemp("hostile")
    shutil.copy(migrated_file, directory / "state.db")
    shop = open_shop(directory, directory / "state.db")
    with shop.client:
        yield shop
    assert len(shop.ledger.jobs().jobs) == 1
    shop.ledger.close()


@pytest.fixture(scope="module")
def film(shop: Shop) -> str:
    return shop.film()


def json_routes(shop: Shop, film: str) -> list[tuple[str, str, bool]]:
    """Method, path and whether it needs a body, of every route that reads JSON; ids lead to something if they can."""
    known = {"{job_id}": film, "{shot_id}": "s1"}
    return [(verb, re.sub(r"{\w+}", lambda name: known.get(name[0], film), path), bool(body.get("required")))
            for path, verbs in shop.client.get("/api/openapi.json").json()["paths"].items()
            for verb, operation in verbs.items() if (body := operation.get("requestBody"))
            and "application/json" in body["content"]]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_json_body_that_breaks_readers_is_refused_and_soon(shop: Shop, film: str, body: bytes) -> None:
    routes = json_routes(shop, film)
    assert len(routes) >= 5
    for method, path, needs_body in routes:
        started_s = time.monotonic()
        reply = shop.client.request(method, path, content=body, headers={"Content-Type": "application/json"})
        assert time.monotonic() - started_s < ANSWER_S
        if body in (b"", b"null") and not needs_body:
            assert reply.status_code == 200
            continue
        assert reply.status_code in (400, 404, 422), (path, reply.text[:1000])
        assert detail_of(reply.json())
        assert len(reply.content) < ANSWER_BYTES, (path, "a long request has no longer answer")


def bomb() -> bytes:
    """Every name holds the one before it eight times."""
    names = [chr(code) for code in range(ord("a"), ord("w"))]
    lines = [f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]"
             for before, name in pairwise(names)]
    return "\n".join(["a: &a [x, x]", *lines, "shots: *v"]).encode()


YAML = {
    "a bomb of aliases": bomb(), "an alias of itself": b"shots: &s\n- prompt: x\n  a: *s\n",
    "a merge": b"shots:\n- <<: {prompt: x}\n", "a python object": b"shots: !!python/object/apply:os.system [id]\n",
    "deep braces": b"{" * 50_000, "deep dashes": b"- " * 50_000, "deep brackets": b"shots: [" + b"[" * 3000,
    "blank": b"shots:\n" + b" " * 1_000_000, "a tag": b"%TAG ! tag:x,2000:\n--- !y\nshots: 1\n",
    "no text": b"\xff\xfe\x00", "nul": b"shots: \x00\n", "question marks": b"? " * 20_000, "anchors": b"&a " * 1000,
    "quotes": b"'" * 100_000, "nan": b"shots: .nan\n", "a huge number": b"shots: 0x" + b"f" * 50_000,
    "documents": b"---\n" * 50_000}


@pytest.mark.parametrize("body", YAML.values(), ids=YAML)
def test_a_yaml_body_that_breaks_readers_is_refused_and_soon(shop: Shop, body: bytes) -> None:
    started_s = time.monotonic()
    reply = shop.client.post("/api/films", content=body, headers={"Content-Type": "application/yaml"})
    assert time.monotonic() - started_s < ANSWER_S
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid-document"), reply.text
    assert reply.json()["errors"]


SCRIPTS = {
    "no text": b"\xff\xfe", "nul": b"\0", "heads": b"INT. " * 150_000, "blank": b"\n" * 1_000_000,
    "rules": b"=" * 500_000, "comments": b"/*" * 200_000, "notes": b"[[" * 200_000, "one word": b"A" * 1_000_000,
    "brackets": b"(" * 500_000, "stars": b"*" * 500_000, "separators": "\u2028".encode() * 200_000}


@pytest.mark.parametrize("kind", ["text/plain", "text/fountain", "text/markdown"])
@pytest.mark.parametrize("body", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_that_breaks_readers_is_refused_or_planned_and_soon(shop: Shop, kind: str, body: bytes) -> None:
    started_s = time.monotonic()
    reply = shop.client.post("/api/films?dry_run=true", content=body, headers={"Content-Type": kind})
    assert time.monotonic() - started_s < ANSWER_S
    assert reply.status_code in (200, 422), reply.text


DISPOSITION = b"--x\r\nContent-Disposition: form-data; name="
PART = DISPOSITION + b'"prompt"\r\n\r\na red circle\r\n'
END = b"--x--\r\n"
FORM = "multipart/form-data; boundary=x"
FORMS = {
    "no boundary": ("multipart/form-data", PART + END), "an empty one": ("multipart/form-data; boundary=", PART + END),
    "cut off": (FORM, PART[:-10]), "another one": ("multipart/form-data; boundary=y", PART + END),
    "twice": (FORM, PART + PART + END),
    "a huge part header": (FORM, b"--x\r\nX-Long: " + b"h" * 500_000 + b"\r\n\r\nv\r\n" + END),
    "ten thousand parts": (FORM, b"".join(DISPOSITION + b'"k%d"\r\n\r\nv\r\n' % n for n in range(10_000)) + END),
    "many headers": (FORM, DISPOSITION + b'"a"\r\n' + b"X: y\r\n" * 50_000 + b"\r\nv\r\n" + END),
    "an open quote": (FORM, DISPOSITION + b'"prompt\r\n\r\nv\r\n' + END),
    "parts in parts": (FORM, b"--x\r\nContent-Type: multipart/mixed; boundary=z\r\n\r\n--z\r\n\r\nv\r\n--z--\r\n"
                       + END),
    "a long boundary": ("multipart/form-data; boundary=" + "b" * 5000, b"--" + b"b" * 5000 + b"\r\n"),
    "no ASCII": ("multipart/form-data; boundary=\xff", b"--\xff\r\n"),
    "a nul": ("multipart/form-data; boundary*=utf-8''%00", b"--\0\r\n"),
    "no UTF-8": (FORM, PART.replace(b"red", b"\xff") + END),
    "base64": (FORM, PART.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n???") + END)}


@pytest.mark.parametrize(("kind", "body"), FORMS.values(), ids=FORMS)
def test_a_form_that_breaks_readers_is_refused_and_soon(shop: Shop, kind: str, body: bytes) -> None:
    started_s = time.monotonic()
    reply = shop.client.post("/v1/videos", content=body, headers=[(b"Content-Type", kind.encode("latin-1"))])
    assert time.monotonic() - started_s < ANSWER_S
    assert reply.status_code in (400, 413, 415, 422), reply.text
    assert detail_of(reply.json())


def detail_of(body: Any) -> str:
    """The sentence of a problem, in either shape."""
    return str(body["error"]["message"] if "error" in body else body["detail"])
