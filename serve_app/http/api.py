"""The application: routers, guard, errors and the OpenAPI document around one desk. Knows no Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from serve_app.http import (
    access,
    batches,
    edit_ui,
    edits,
    films,
    images,
    jobs,
    openai,
    pictures,
    problems,
    system,
    uploads,
    video_edits,
    videos,
    webhooks,
)
from serve_app.http.edit_schemas import wish_schema
from serve_app.http.guard import Guard
from serve_app.http.schemas import Problem, ScriptRequest
from serve_app.http.ui import install_page
from serve_app.service.desk import Desk
from workflows.storyboard import Shot, Storyboard

DESCRIPTION = """Turns storyboards into films on GPUs that Ray manages.

Work is queued and answered with 202; look at the job, or follow its events. Errors are `application/problem+json`
(RFC 9457) with `errors[]` that point at what is wrong. Times are unix seconds, durations seconds."""
REF = "#/components/schemas/{model}"


def build_api(desk: Desk) -> FastAPI:
    """The ASGI application that serves this desk, and closes it when it ends."""
    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await desk.close()

    # The pages that FastAPI has for its document load scripts from elsewhere.
    app = FastAPI(title="reelray", version=version("reelray"), description=DESCRIPTION, lifespan=life,
                  openapi_url="/api/openapi.json", docs_url=None, redoc_url=None,
                  dependencies=[Depends(access.own_jobs_only)])
    app.state.desk = desk
    for router in (films.router, pictures.router, uploads.router, edits.router, jobs.router, jobs.files, system.router,
                   webhooks.router, openai.router, videos.router, video_edits.router,
                   images.router, batches.router):
        app.include_router(router)
    app.include_router(edit_ui.router)
    install_page(app)
    problems.install(app)
    # The last one added is passed first: the guard, then CORS, then keys.
    app.add_middleware(access.Doorman, access=desk.access)
    access.allow_origins(app, desk.settings)
    app.add_middleware(Guard, settings=desk.settings)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]  # FastAPI's own way of extending the document
    return app


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document, with the bodies that are read by our own parsers."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, schemas = models_json_schema([(Storyboard, "validation"), (ScriptRequest, "validation"),
                                         (Shot, "validation"), (Problem, "validation")], ref_template=REF)
        components = document.setdefault("components", {}).setdefault("schemas", {})
        components.update({name: schema for name, schema in schemas["$defs"].items() if name not in components})
        _say_what_documents_may_leave_out(components)
        wish_schema(components, REF)
        document["paths"]["/api/films/{job_id}/shots/{shot_id}"]["patch"]["requestBody"] = films.CHANGE_BODY
        access.describe(document)
        app.openapi_schema = document
    return app.openapi_schema


def _say_what_documents_may_leave_out(components: dict[str, Any]) -> None:
    """What a document may write otherwise than the class has it: short forms, ids by position, changes in part."""
    shot = components["Shot"]
    shot["required"] = ["prompt"]
    fields: dict[str, Any] = {name: {"anyOf": [schema, {"type": "null"}]}
                              for name, schema in shot["properties"].items() if name != "id"}
    fields["restore_take"] = {"type": "integer", "minimum": 1, "description": (
        "Number of an earlier take of the shot: it is shown again, and nothing is rendered for it. Stands alone.")}
    components["ShotChange"] = {
        "type": "object", "title": "ShotChange", "properties": fields, "additionalProperties": False,
        "description": "Fields of a shot that change; null takes a field away."}
    size = components["Size"]
    components["Size"] = {"title": "Size", "description": size["description"], "oneOf": [
        {"type": "string", "pattern": "^[0-9]{1,5}[xX][0-9]{1,5}$", "examples": ["96x64"]}, size]}
    transition = components["Transition"]
    components["Transition"] = {"title": "Transition", "description": transition["description"], "oneOf": [
        {"$ref": REF.format(model="TransitionType")}, transition]}
