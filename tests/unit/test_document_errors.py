"""Text that is no document, or that two readers would read differently, is refused with file, line and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflows.errors import InvalidDocument
from workflows.source import decode_text, read_text
from workflows.storyboard import parse_storyboard

# By name: the text, then every line of the message.
YAML = {
    "empty": (
        "",
        "film.yaml:1: the document is empty",
    ),
    "only a comment": (
        "# nothing\n",
        "film.yaml:1: the document is empty",
    ),
    "a text": (
        "hello",
        "film.yaml:1: a storyboard is a mapping with `shots`, not the text 'hello'",
    ),
    "a list": (
        "- 1\n",
        "film.yaml:1: a storyboard is a mapping with `shots`, not a list",
    ),
    "a number": (
        "42",
        "film.yaml:1: a storyboard is a mapping with `shots`, not the number 42",
    ),
    "two documents": (
        "shots:\n  - {prompt: a}\n---\nshots: []\n",
        "film.yaml:3: a second document starts here; a file holds one",
    ),
    "a tab": (
        "shots:\n\t- prompt: a\n",
        "film.yaml:2: a tab cannot indent YAML; use spaces",
    ),
    "an open quote": (
        "title: 'Ball\nshots:\n  - prompt: a\n",
        "film.yaml:1: a quote that is opened here is never closed",
    ),
    "an open list": (
        "shots: [{prompt: a}\n",
        "film.yaml:2: not YAML: did not find expected ',' or ']' (begun on line 1)",
    ),
    "a colon in text": (
        "title: Ball: the film\nshots:\n  - prompt: a\n",
        "film.yaml:1: a colon stands where none can; quote the text around it, or check the indentation",
    ),
    "an at sign": (
        "shots:\n  - prompt: @home\n",
        "film.yaml:2: text without quotes cannot start with @; quote it",
    ),
    "bad indentation": (
        "shots:\n  - prompt: a\n   mode: keyframe\n",
        "film.yaml:3: not YAML: did not find expected '-' indicator (begun on line 2)",
    ),
    "a NUL byte": (
        "title: a\x00b\nshots:\n  - prompt: a\n",
        "film.yaml:1: the character U+0000 is not allowed; remove it",
    ),
    "an escaped NUL": (
        "shots:\n  - prompt: \"a\\0b\"\n",
        "film.yaml:2: shot s1: prompt: the character U+0000 is not allowed; remove it",
    ),
    "an escaped NUL in a key": (
        "\"ti\\0tle\": x\nshots:\n  - prompt: a\n",
        "film.yaml:1: a key holds the character U+0000; remove it",
    ),
    "half a surrogate pair": (
        "title: \ud800\n",
        "film.yaml:1: the character U+D800 is not allowed; remove it",
    ),
    "a surrogate escape in JSON": (
        "{\"title\": \"\\ud800\", \"shots\": [{\"prompt\": \"a\"}]}",
        "film.yaml:1: title: the character U+D800 is not allowed; remove it",
    ),
    "a duplicate key": (
        "title: A\nseed: 1\ntitle: B\nshots:\n  - prompt: a\n",
        "film.yaml:3: title: is given twice, first on line 1",
    ),
    "a duplicate key in a shot": (
        "shots:\n  - prompt: a\n    prompt: b\n",
        "film.yaml:3: shot s1: prompt: is given twice, first on line 2",
    ),
    "an alias": (
        "shots:\n  - &one\n    prompt: a\n  - *one\n",
        "film.yaml:4: shot s2: the alias *one is not followed; write the value here",
    ),
    "laughs": (
        "a: &a [x, x]\nb: &b [*a, *a]\nshots: [*b, *b]\n",
        "film.yaml:1: a: unknown field",
        "film.yaml:2: b[0]: the alias *a is not followed; write the value here",
        "film.yaml:2: b[1]: the alias *a is not followed; write the value here",
        "film.yaml:2: b: unknown field",
        "film.yaml:3: shot s1: the alias *b is not followed; write the value here",
        "film.yaml:3: shot s2: the alias *b is not followed; write the value here",
    ),
    "a python tag": (
        "shots:\n  - prompt: !!python/object/apply:os.system [ls]\n",
        "film.yaml:2: shot s1: prompt: the YAML tag !!python/object/apply:os.system is not allowed; remove it",
    ),
    "an undefined tag": (
        "title: !e!x a\nshots:\n  - prompt: a\n",
        "film.yaml:1: not YAML: found undefined tag handle",
    ),
    "a list as key": (
        "? [a]\n: b\nshots:\n  - prompt: a\n",
        "film.yaml:1: a key must be text, not a list, a mapping or an alias",
    ),
    "deep": (
        "shots: " + "[" * 40 + "]" * 40,
        "film.yaml:1: nested deeper than 12 levels",
    ),
    "yes as title": (
        "title: yes\nshots:\n  - prompt: a\n",
        "film.yaml:1: title: must be text, not the true/false value yes; nearest valid: \"yes\"",
    ),
    "off as caption": (
        "shots:\n  - prompt: a\n    caption: Off\n",
        "film.yaml:3: shot s1: caption: must be text, not the true/false value Off; nearest valid: \"Off\"",
    ),
    "a number as id": (
        "shots:\n  - prompt: a\n    id: 1\n",
        "film.yaml:3: shot s1: id: must be text, not the number 1; nearest valid: \"1\"",
    ),
    "a date as title": (
        "title: 2026-01-31\nshots:\n  - prompt: a\n",
        "film.yaml:1: title: 2026-01-31 without quotes is a date in YAML; nearest valid: \"2026-01-31\"",
    ),
    "a time as caption": (
        "shots:\n  - prompt: a\n    caption: 12:30\n",
        "film.yaml:3: shot s1: caption: 12:30 without quotes is a base-60 number in YAML; nearest valid: \"12:30\"",
    ),
    "an octal id": (
        "shots:\n  - prompt: a\n    id: 007\n",
        "film.yaml:3: shot s1: id: 007 without quotes is read as different numbers by different "
        "YAML readers; nearest valid: \"007\"",
    ),
    "not a number": (
        "fps: .nan\nshots:\n  - prompt: a\n",
        "film.yaml:1: fps: .nan is not a number that can be used",
    ),
    "infinite": (
        "fps: .inf\nshots:\n  - prompt: a\n",
        "film.yaml:1: fps: .inf is not a number that can be used",
    ),
    "overflow": (
        "fps: 1e999\nshots:\n  - prompt: a\n",
        "film.yaml:1: fps: 1e999 is not a number that can be used",
    ),
    "NaN in JSON": (
        "{\"fps\": NaN,\n \"shots\": [{\"prompt\": \"a\"}]}",
        "film.yaml:1: fps: NaN is not a number that can be used",
    ),
    "a huge number": (
        "seed: " + "9" * 50 + "\nshots:\n  - prompt: a\n",
        "film.yaml:1: seed: 9999999999999999999999999999999999999... is not a number that can be used",
    ),
}

JSON = {
    "a comma too many": (
        "{\"shots\": [{\"prompt\": \"a\"},]}",
        "film.json:1: not JSON: a comma before ] is one too many",
    ),
    "no comma": (
        "{\"title\": \"x\"\n \"shots\": []}",
        "film.json:2: not JSON: expected , or }",
    ),
    "single quotes": (
        "{'shots': []}",
        "film.json:1: not JSON: expected a key in double quotes, or \"}\"",
    ),
    "an open text": (
        "{\"title\": \"x\n}",
        "film.json:1: not JSON: a text in double quotes is not closed on its line, or has an unknown \\ escape",
    ),
    "a word": (
        "{\"title\": nope}",
        "film.json:1: not JSON: expected a value: text in double quotes, a number, a list or a mapping",
    ),
    "a leading zero": (
        "{\"seed\": 01}",
        "film.json:1: not JSON: expected a value: text in double quotes, a number, a list or a mapping",
    ),
    "text after the end": (
        "{\"shots\": []}\n}",
        "film.json:2: not JSON: nothing may follow the closing bracket",
    ),
    "a key without colon": (
        "{\"title\" \"x\"}",
        "film.json:1: not JSON: expected : after the key 'title'",
    ),
    "a duplicate": (
        "{\"title\": \"x\",\n \"title\": \"y\", \"shots\": [{\"prompt\": \"a\"}]}",
        "film.json:2: title: is given twice, first on line 1",
    ),
    "nothing": (
        "",
        "film.json:1: the document is empty",
    ),
    "true as title": (
        "{\"title\": true, \"shots\": [{\"prompt\": \"a\"}]}",
        "film.json:1: title: must be text, not the true/false value true; nearest valid: \"true\"",
    ),
    "NaN": (
        "{\"fps\": NaN, \"shots\": [{\"prompt\": \"a\"}]}",
        "film.json:1: fps: NaN is not a number that can be used",
    ),
}


@pytest.mark.parametrize(("text", "expected"), [(row[0], row[1:]) for row in YAML.values()], ids=YAML)
def test_unreadable_yaml_gets_exactly_this_message(text: str, expected: tuple[str, ...]) -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_storyboard(text, file="film.yaml")
    assert str(refused.value).split("\n") == list(expected)


@pytest.mark.parametrize(("text", "expected"), [(row[0], row[1:]) for row in JSON.values()], ids=JSON)
def test_unreadable_json_gets_exactly_this_message(text: str, expected: tuple[str, ...]) -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_storyboard(text, file="film.json")
    assert str(refused.value).split("\n") == list(expected)


def test_a_document_longer_than_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_storyboard("title: " + "x" * 1_000_000, file="film.yaml")
    assert str(refused.value) == "film.yaml: longer than 1000000 bytes"


def test_more_values_than_the_limit_are_refused_while_reading() -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_storyboard("shots: [" + "1," * 200_000 + "]", file="film.yaml")
    assert str(refused.value) == "film.yaml:1: more than 100000 values"


def test_text_in_braces_that_is_not_json_is_read_as_yaml() -> None:
    assert parse_storyboard("{title: Ball, shots: [{prompt: a ball}]}").title == "Ball"


def test_text_that_begins_like_json_is_told_what_json_expects() -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_storyboard('{"title": "Ball",\n "shots": [')
    assert str(refused.value) == "2: not JSON: expected a value: text in double quotes, a number, a list or a mapping"


def test_bytes_that_are_not_utf8_are_refused_with_their_line() -> None:
    with pytest.raises(InvalidDocument) as refused:
        decode_text("shots:\n  - prompt: caf\u00e9\n".encode("latin-1"), file="film.yaml")
    assert str(refused.value) == "film.yaml:2: byte 0xe9 is not UTF-8; save the file as UTF-8"


def test_a_file_that_does_not_exist_is_answered_with_the_nearest_that_does(tmp_path: Path) -> None:
    (tmp_path / "film.yaml").write_text("shots: []")
    with pytest.raises(InvalidDocument) as refused:
        read_text(tmp_path / "fillm.yaml")
    assert str(refused.value) == f"{tmp_path / 'fillm.yaml'}: there is no such file; nearest valid: film.yaml"


def test_a_directory_is_not_a_document(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="cannot be read: Is a directory"):
        read_text(tmp_path)


def test_a_file_is_read_no_further_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "film.yaml"
    path.write_bytes(b"#" * 2_000_000)
    with pytest.raises(InvalidDocument, match="longer than 1000000 bytes"):
        read_text(path)


def test_a_byte_order_mark_is_no_part_of_the_document(tmp_path: Path) -> None:
    path = tmp_path / "film.yaml"
    path.write_text("title: Ball\nshots:\n  - prompt: a\n", encoding="utf-8-sig")
    assert parse_storyboard(read_text(path)).title == "Ball"
