"""Bodies of named values: JSON or a multipart form; and the parts of any form. Knows no route."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser

from pydantic import JsonValue

from serve_app.http.problems import Detail, Refused, refused_document
from serve_app.service.films import read_json
from workflows.errors import InvalidDocument
from workflows.source import decode_text

MAX_PARTS = 100
PLAIN = ("7bit", "8bit", "binary")
"""Encodings of a part that leave its bytes as they are; RFC 7578 has no others."""
JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormPart:
    """One part of a form."""

    data: bytes
    filename: str | None
    """None: a value, not a file."""
    media_type: str
    """As the part says; empty when it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What a body says."""

    values: dict[str, JsonValue]
    files: dict[str, bytes] = field(default_factory=dict)


def read_fields(body: bytes, content_type: str, files: Collection[str] = ()) -> Fields:
    """The values by name, and files where they may have one of these names.

    Raises Refused for another type, a body that cannot be read, another file, a name given twice.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == FORM_TYPE:
        return _form(body, content_type, files)
    if kind != JSON_TYPE:
        raise Refused(415, "unsupported_media_type", f"send {JSON_TYPE} or {FORM_TYPE}, not {kind[:100] or 'nothing'}")
    try:
        value = read_json(decode_text(body), "body.json")
    except InvalidDocument as error:
        raise refused_document(error) from None
    if not isinstance(value, dict):
        raise Refused(400, "invalid_value", "the body is an object of fields, as in {\"prompt\": \"...\"}")
    return Fields(values=value)


def read_parts(body: bytes, content_type: str) -> dict[str, FormPart]:
    """The parts of a multipart form by name. Raises Refused for what is none, and a name given twice."""
    head = b"Content-Type: " + content_type.encode("latin-1", "replace") + b"\r\n\r\n"
    message = _parsed(head + body)
    if not message.is_multipart() or message.defects:
        raise Refused(400, "invalid_value", "the body is no multipart form, or is cut off")
    parts: dict[str, FormPart] = {}
    for part in message.iter_parts():
        name = str(part.get_param("name", "", "content-disposition"))
        data = part.get_payload(decode=True)
        if not name or name in parts or not isinstance(data, bytes):
            text = f"{name or 'a part'} is given twice, has no name, or has parts itself"
            raise Refused(400, "unsupported_parameter", text, errors=[Detail(detail=text, parameter=name)])
        media_type = part.get_content_type() if part.get("content-type") else ""
        parts[name] = FormPart(data=data, filename=part.get_filename(), media_type=media_type)
    return parts


def _form(body: bytes, content_type: str, files: Collection[str]) -> Fields:
    fields = Fields(values={})
    for name, part in read_parts(body, content_type).items():
        if part.filename is None:
            fields.values[name] = part.data.decode("utf-8", "replace")
        elif name in files:
            fields.files[name] = part.data
        else:
            text = f"{name}: no file is taken here" + (f", except as {', '.join(files)}" if files else "")
            raise Refused(400, "unsupported_parameter", text, errors=[Detail(detail=text, parameter=name)])
    return fields


def _parsed(text: bytes) -> EmailMessage:
    """The form, each part whole and as it was sent. Raises Refused."""
    # Counted before they are parsed: that takes a millisecond for five parts.
    if text.count(b"\n--") > MAX_PARTS + 1 and text.lower().count(b"content-disposition:") > MAX_PARTS:
        raise Refused(400, "invalid_value", f"the form has more than {MAX_PARTS} parts")
    message = BytesParser(policy=policy.HTTP).parsebytes(text)
    for part in message.iter_parts() if message.is_multipart() else ():
        header, data = part["content-disposition"], part.get_payload(decode=True)
        encoding = part.get("content-transfer-encoding", PLAIN[0])
        if header is None or header.defects or part.defects or encoding not in PLAIN:
            raise Refused(400, "invalid_value", "the head of a part cannot be read: send it as browsers do, unencoded")
        if part.get_filename() is None and isinstance(data, bytes) and not _is_text(data):
            raise Refused(400, "invalid_value", "a value of the form is no UTF-8")
    return message


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
