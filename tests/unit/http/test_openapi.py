"""The OpenAPI document: complete, described, and true."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from tests.desk import ROUTES, TWO_SHOTS, Shop


@pytest.fixture
def document(shop: Shop) -> dict[str, Any]:
    found: dict[str, Any] = shop.client.get("/api/openapi.json").json()
    return found


def test_every_route_is_in_it_and_says_what_it_is(document: dict[str, Any]) -> None:
    assert {path: set(verbs) for path, verbs in document["paths"].items()} == ROUTES
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            assert operation["summary"], (verb, path)
            assert operation["description"], (verb, path)
            for parameter in operation.get("parameters", ()):
                assert parameter.get("description") or parameter["in"] == "header", (verb, path, parameter["name"])


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [found for part in value.values() for found in references(part)]
        return [found for part in value for found in references(part)] if isinstance(value, list) else []

    schemas = document["components"]["schemas"]
    assert {ref.rpartition("/")[2] for ref in references(document)} <= set(schemas)
    assert "HTTPValidationError" not in {ref.rpartition("/")[2] for ref in references(document)}


@pytest.mark.parametrize(("schema", "value", "is_valid"), [
    ("Storyboard", TWO_SHOTS, True),
    ("Storyboard", {"size": "96x64", "shots": [{"prompt": "x", "transition": "cut"}]}, True),
    ("Storyboard", {"size": {"width_px": 96, "height_px": 64}, "shots": [{"prompt": "x"}]}, True),
    ("Storyboard", {"shots": []}, False), ("Storyboard", {"shots": [{"promt": "x"}]}, False),
    ("ShotChange", {"frames": None, "prompt": "x"}, True), ("ShotChange", {"restore_take": 1}, True),
    ("ShotChange", {"restore_take": 0}, False), ("ShotChange", {"promt": "x"}, False),
    ("ScriptRequest", {"script": "x", "film": {"seed": 1}}, True), ("ScriptRequest", {"script": ""}, False),
])
def test_bodies_are_described_as_they_are_read(
        document: dict[str, Any], schema: str, value: Any, is_valid: bool) -> None:
    rule = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
    assert jsonschema.Draft202012Validator(rule).is_valid(value) is is_valid


def test_replies_are_what_it_says(shop: Shop, document: dict[str, Any]) -> None:
    job_id = shop.film()
    for path in ("/api/jobs", "/api/jobs/{job_id}", "/api/jobs/{job_id}/log", "/api/models", "/api/capacity",
                 "/readyz"):
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        rule = {**schema, "components": document["components"]}
        jsonschema.Draft202012Validator(rule).validate(shop.client.get(path.replace("{job_id}", job_id)).json())


@pytest.mark.parametrize(("method", "path", "status", "media_type"), [
    ("post", "/api/jobs/{job_id}/cancel", "200", "application/json"),
    ("post", "/api/jobs/{job_id}/retry", "200", "application/json"),
    ("patch", "/api/films/{job_id}/shots/{shot_id}", "200", "application/json"),
    ("post", "/api/films/{job_id}/promote", "200", "application/json"),
    ("post", "/v1/videos", "415", "application/json"),
    ("get", "/v1/videos/{video_id}/content", "200", "image/png"),
])
def test_rarer_replies_are_in_it_too(
        document: dict[str, Any], method: str, path: str, status: str, media_type: str) -> None:
    assert media_type in document["paths"][path][method]["responses"][status]["content"]


def test_an_event_is_described_field_by_field(document: dict[str, Any]) -> None:
    stream = document["paths"]["/api/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    assert stream["itemSchema"]["required"] == ["event", "data"]
