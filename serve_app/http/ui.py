"""The page: routes that answer with HTML. Every verb is a form that works without a script; htmx makes it smooth."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from serve_app.http.access import TheCaller
from serve_app.http.deps import JobId, ShotId, TheDesk
from serve_app.http.problems import NOT_FOUND, STATUS_OF_FAULT, Refused
from serve_app.service.films import RESTORE
from serve_app.service.pages import JOB_WORDS, Draught, Pages, film_url
from serve_app.web import EXAMPLES, STATIC, TEMPLATES
from workflows.durable.database import is_down
from workflows.errors import InvalidDocument, JobConflict, ReelrayError
from workflows.tiers import Tier
from workflows.types import JobStatus, Json

log = logging.getLogger(__name__)

POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "media-src 'self'",
    "connect-src 'self'", "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"))
"""Nothing inline, nothing from elsewhere: what somebody wrote into a prompt can never run."""
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin",
           "Cache-Control": "no-store"}
FORMS = {"storyboard": "first_film.yaml", "script": "script_example.fountain"}
"""How a film may be written -> the example of it."""
MAX_FIELDS = 20
TITLES = {404: "Not here", 409: "Not now", 413: "Too long", 422: "That does not work", 503: "Away for a moment"}
ENVIRONMENT = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                          trim_blocks=True, lstrip_blocks=True)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]
PathLike = str | os.PathLike[str]


class PageRoute(APIRoute):
    """A route whose refusals are for people."""

    def get_route_handler(self) -> Handler:
        """The handler, with errors as pages, or as a notice in the page that asked."""
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await answer(request)
            except (ReelrayError, HTTPException, RequestValidationError) as error:
                return _refusal(request, *_said(error))
            except Exception as error:
                if not is_down(error):
                    raise
                log.warning("%s: database is away: %s", request.url.path, str(error).splitlines()[0])
                return _refusal(request, 503, "The database cannot be reached for now; try again in a moment.")

        return handle


router = APIRouter(route_class=PageRoute, include_in_schema=False)


class PageFiles(StaticFiles):
    """The page's own files; asked for every time, so that a newer server never meets an older script."""

    def file_response(self, full_path: PathLike, stat_result: os.stat_result, scope: Scope,
                      status_code: int = 200) -> Response:
        """The file, or 304."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update({"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})
        return response


def install_page(app: FastAPI) -> None:
    """Serve the page and its files from this application."""
    app.include_router(router)
    app.mount("/static", PageFiles(directory=STATIC), name="static")


@router.get("/")
async def front(desk: TheDesk, caller: TheCaller, status: str = "",
                cursor: Annotated[str, Query(max_length=500)] = "") -> Response:
    """Films, newest first."""
    if status and status not in set(JobStatus):
        raise Refused(422, "invalid-request", f"there is no status {status!r}; one of {', '.join(JobStatus)}")
    page = await asyncio.to_thread(Pages(desk, caller).films, JobStatus(status) if status else None, cursor)
    return page_reply("list.html", {"page": page, "statuses": tuple(JobStatus), "words": JOB_WORDS})


@router.get("/new")
async def editor(desk: TheDesk, caller: TheCaller, form: str = "storyboard",
                 film: Annotated[str, Query(max_length=200)] = "") -> Response:
    """The editor with an example in it, or with the storyboard of a film."""
    form = _form(form)
    if film:
        await desk.access.require_own(caller, film)
        text, form = await asyncio.to_thread(Pages(desk).text_of, film), "storyboard"
    else:
        text = (EXAMPLES / FORMS[form]).read_text(encoding="utf-8")
    return _editor(await asyncio.to_thread(Pages(desk).check, text, form))


@router.post("/new/check")
async def check(request: Request, desk: TheDesk) -> Response:
    """What would be done, or what is wrong; nothing is queued."""
    fields = await _fields(request)
    draught = await asyncio.to_thread(Pages(desk).check, _text(fields), _form(fields.get("form", "storyboard")))
    if _is_fragment(request):
        return page_reply("_check.html", {"draught": draught})
    return _editor(draught)


@router.post("/new")
async def submit(request: Request, desk: TheDesk, caller: TheCaller) -> Response:
    """Queue the film and go to its page; or the editor again, with what is wrong."""
    fields = await _fields(request)
    text, form = _text(fields), _form(fields.get("form", "storyboard"))
    try:
        tier = Tier.DRAFT if fields.get("tier") == Tier.DRAFT.value else None
        job_id = await asyncio.to_thread(Pages(desk, caller).submit, text, form, fields.get("token", ""), tier)
    except InvalidDocument:
        draught = await asyncio.to_thread(Pages(desk).check, text, form)
        return _editor(draught, 422)
    desk.submitted(job_id)
    return to_job(job_id)


@router.get("/films/{job_id}")
async def film(job_id: JobId, desk: TheDesk) -> Response:
    """A film: its shots, steps, takes and log; or an edit of a video: its stages, mask and result."""
    page = await Pages(desk).film(job_id)
    return page_reply("edit.html" if page.edit else "film.html", {"film": page})


@router.get("/films/{job_id}/now")
async def now(job_id: JobId, desk: TheDesk) -> Response:
    """Its status, place in the queue, time left, warnings and errors: a part of the page."""
    page = await Pages(desk).film(job_id)
    return page_reply("_edit_now.html" if page.edit else "_now.html", {"film": page})


@router.get("/films/{job_id}/log")
async def film_log(job_id: JobId, desk: TheDesk) -> Response:
    """The lines of its log: a part of the page."""
    return page_reply("_log.html", {"lines": await asyncio.to_thread(Pages(desk).log, job_id), "job_id": job_id})


@router.get("/films/{job_id}/shots/{shot_id}")
async def shot(job_id: JobId, shot_id: ShotId, desk: TheDesk) -> Response:
    """The card of one shot: a part of the page."""
    page = await Pages(desk).film(job_id)
    card = page.shot(shot_id)
    if card is None:
        raise Refused(404, "unknown-part", f"this film has no shot {shot_id!r}")
    return page_reply("_shot.html", {"film": page, "shot": card})


@router.post("/films/{job_id}/cancel")
async def cancel(job_id: JobId, desk: TheDesk) -> Response:
    """End it at the next step."""
    await desk.cancel(job_id)
    return to_job(job_id)


@router.post("/films/{job_id}/retry")
async def retry(job_id: JobId, desk: TheDesk) -> Response:
    """Run all that did not succeed."""
    await desk.retry(job_id, (), force=False)
    return to_job(job_id)


@router.post("/films/{job_id}/promote")
async def promote(job_id: JobId, desk: TheDesk) -> Response:
    """Make all drafts final."""
    await desk.promote(job_id, ())
    return to_job(job_id)


@router.post("/films/{job_id}/shots/{shot_id}/promote")
async def promote_shot(job_id: JobId, shot_id: ShotId, desk: TheDesk) -> Response:
    """Make one draft final."""
    await desk.promote(job_id, (shot_id,))
    return to_job(job_id)


@router.post("/films/{job_id}/delete")
async def delete(job_id: JobId, desk: TheDesk) -> Response:
    """Forget it."""
    await desk.delete(job_id)
    return RedirectResponse("/", 303)


@router.post("/films/{job_id}/shots/{shot_id}")
async def change(request: Request, job_id: JobId, shot_id: ShotId, desk: TheDesk) -> Response:
    """Change a shot's words; it, what continues it, and the film are rendered again."""
    fields = await _fields(request)
    changes: dict[str, Json] = {"prompt": fields.get("prompt", "").strip(),
                                "caption": fields.get("caption", "").strip() or None}
    await desk.change_shot(job_id, shot_id, changes)
    return to_job(job_id)


@router.post("/films/{job_id}/shots/{shot_id}/retry")
async def again(job_id: JobId, shot_id: ShotId, desk: TheDesk) -> Response:
    """A shot that failed runs again; one that succeeded gets a new take."""
    card = (await Pages(desk).film(job_id)).shot(shot_id)
    await desk.retry(job_id, (shot_id,), force=card is not None and card.status.value == "succeeded")
    return to_job(job_id)


@router.post("/films/{job_id}/shots/{shot_id}/takes/{number}")
async def choose(job_id: JobId, shot_id: ShotId, number: int, desk: TheDesk) -> Response:
    """Show an earlier take; nothing is rendered for it."""
    await desk.change_shot(job_id, shot_id, {RESTORE: number})
    return to_job(job_id)


def page_reply(template: str, shown: Mapping[str, Any], status: int = 200,
               headers: Mapping[str, str] | None = None) -> Response:
    """A template with what it shows, under the page's policy."""
    content = ENVIRONMENT.get_template(template).render(dict(shown))
    # What somebody wrote may hold half a character.
    return HTMLResponse(content.encode("utf-8", "replace"), status, {**HEADERS, **(headers or {})})


def _editor(draught: Draught, status: int = 200) -> Response:
    return page_reply("new.html", {"draught": draught, "token": uuid.uuid4().hex}, status)


def to_job(job_id: str) -> Response:
    """On to a job's page."""
    return RedirectResponse(film_url(job_id), 303, {"Cache-Control": "no-store"})


def _refusal(request: Request, status: int, text: str) -> Response:
    shown = {"status": status, "title": TITLES.get(status, "Something went wrong"), "text": text}
    if _is_fragment(request):
        return page_reply("_notice.html", shown, status, {
            "HX-Retarget": "#notice", "HX-Reswap": "innerHTML", "HX-Reselect": "#problem"})
    return page_reply("error.html", shown, status)


def _said(error: ReelrayError | HTTPException | RequestValidationError) -> tuple[int, str]:
    """Status and words of an error."""
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, RequestValidationError):
        return 422, "; ".join(f"{found['loc'][-1]}: {found['msg']}" for found in error.errors())
    if isinstance(error, NOT_FOUND):
        return 404, str(error)
    status = 409 if isinstance(error, JobConflict) else STATUS_OF_FAULT[error.fault]
    if status == 500:
        log.error("the page failed", exc_info=error)
    return status, str(error)


def _is_fragment(request: Request) -> bool:
    return request.headers.get("hx-request") == "true"


def _form(name: str) -> str:
    if name not in FORMS:
        raise Refused(422, "invalid-request", f"a film is written as one of {', '.join(FORMS)}, not as {name[:40]!r}")
    return name


async def _fields(request: Request) -> Mapping[str, str]:
    """The form that was sent, each field once. Raises Refused."""
    body = (await request.body()).decode("utf-8", "replace")
    try:
        return {name: values[-1] for name, values in parse_qs(body, keep_blank_values=True,
                                                              max_num_fields=MAX_FIELDS).items()}
    except ValueError:
        raise Refused(400, "bad-form", f"the form has more than {MAX_FIELDS} fields") from None


def _text(fields: Mapping[str, str]) -> str:
    """What stands in the editor; browsers send its lines with both ends."""
    return fields.get("text", "").replace("\r\n", "\n")
