"""Forms that are read as they arrive: the same whatever pieces they come in."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from io import BytesIO
from itertools import pairwise

import pytest

from serve_app.http.form_stream import read_form
from serve_app.http.problems import Refused

TYPE = "multipart/form-data; boundary=xYz"
FILE = bytes(random.Random(3).randrange(256) for _ in range(5000)) + b"\r\n--xY\r\n-\r\n--xYx"
HEAD = b'--xYz\r\nContent-Disposition: form-data; name="steps"\r\n\r\n20\r\n'
FORM = (b"spoken before\r\n" + HEAD + b'--xYz\r\ncontent-disposition: form-data; name="video"; filename="a b.mp4"\r\n'
        b"Content-Type: video/mp4\r\n\r\n" + FILE
        + b'\r\n--xYz\r\nContent-Disposition: form-data; name="none"\r\n\r\n\r\n--xYz--\r\nspoken after')


async def read(body: bytes, cuts: int = 0, content_type: str = TYPE) -> tuple[dict[str, str], dict[str, BytesIO]]:
    drawn = random.Random(cuts)
    places = sorted([0, len(body), *(drawn.randrange(len(body)) for _ in range(cuts))])

    async def pieces() -> AsyncIterator[bytes]:
        for start, end in pairwise(places):
            yield body[start:end]

    files: dict[str, BytesIO] = {}
    values = await read_form(pieces(), content_type, ("video",), lambda name, filename: files.setdefault(
        f"{name} {filename}", BytesIO()))
    return values, files


@pytest.mark.parametrize("cuts", [0, 1, 7, 60, 3000])
async def test_a_form_is_the_same_in_whatever_pieces_it_comes(cuts: int) -> None:
    values, files = await read(FORM, cuts)
    assert values == {"steps": "20", "none": ""}
    assert {name: file.getvalue() for name, file in files.items()} == {"video a b.mp4": FILE}


BAD = {
    "cut_off": (FORM[:400], TYPE, "cut off"), "no_boundary": (FORM, "multipart/form-data", "no boundary"),
    "long_boundary": (FORM, f"multipart/form-data; boundary={'x' * 80}", "no boundary"),
    "twice": (HEAD + HEAD + b"--xYz--", TYPE, "given twice"),
    "no_name": (b"--xYz\r\nContent-Disposition: form-data\r\n\r\n1\r\n--xYz--", TYPE, "head of a part"),
    "encoded": (HEAD.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n") + b"--xYz--", TYPE,
                "unencoded"),
    "long_head": (b"--xYz\r\n" + b"x" * 5000 + b"\r\n\r\n", TYPE, "longer than 4000"),
    "long_value": (HEAD[:-4] + b"1" * 300_000 + b"\r\n--xYz--", TYPE, "longer than 200000"),
    "no_text": (HEAD[:-4] + b"\xff\r\n--xYz--", TYPE, "UTF-8"), "empty": (b"", TYPE, "cut off"),
    "other_file": (FORM.replace(b'"video"', b'"film"'), TYPE, "no file is taken here"),
    "many": (b"".join(HEAD.replace(b"steps", b"s%d" % n) for n in range(101)), TYPE, "more than 100"),
    "odd_end": (HEAD + b"--xYzab", TYPE, "no part"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_form_is_refused_in_words(name: str) -> None:
    body, content_type, told = BAD[name]
    with pytest.raises(Refused) as refused:
        await read(body, 3 if body else 0, content_type)
    assert refused.value.status_code == 400
    assert told in str(refused.value.detail)
