"""How a client of the HTTP API takes refusals and silence: errors, and how long to try again. Knows only the wire."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2

LONGEST_PAUSE_S = 10.0
NOT_REELRAY = "not-reelray"
"""Code of what answered, but not as reelray does."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One entry of a refusal's `errors[]`."""

    detail: str
    pointer: str = ""
    parameter: str = ""
    shot: str = ""
    line: int | None = None
    nearest: str = ""
    file: str = ""
    """Which of several that were sent."""

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.file, f"line {self.line}" if self.line else "",
                                            f"shot {self.shot}" if self.shot else "",
                                            self.pointer or self.parameter) if part)
        text = f"{place}: {self.detail}" if place else self.detail
        return f"{text} (nearest: {self.nearest})" if self.nearest else text


class ApiError(Exception):
    """The server refused. `status` is HTTP's, `code` the problem's name, `problems` what is wrong and where.

    What this module finds out itself has the status and code that the server would have answered with.
    """

    def __init__(self, status: int, code: str, detail: str, problems: Sequence[Problem] = (), *,
                 retry_after_s: float = 0.0) -> None:
        super().__init__(status, code, detail, tuple(problems))
        self.status, self.code, self.detail, self.problems = status, code, detail, tuple(problems)
        self.retry_after_s = retry_after_s
        """As the server asks; 0: it does not say."""

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems) or f"{self.detail} ({self.status} {self.code})"

    @property
    def passes(self) -> bool:
        """The same request may be answered a little later."""
        # A 500 that is not reelray's comes of the proxy before it: the replica died while it answered.
        died = self.status == 500 and self.code == NOT_REELRAY
        return died or self.status in (429, 502, 503, 504) or self.code == "request-in-flight"


class ServerAway(Exception):
    """The server could not be reached, or the connection to it broke."""


class Tries:
    """Pauses between tries, longer each time; gives up after `patience_s` without success."""

    def __init__(self, patience_s: float, comfort: str) -> None:
        """`comfort` is said at the end; with it, strange answers pass too: what stands before a server that starts."""
        self._patience_s = patience_s
        self._comfort = comfort
        self.reached()

    def reached(self) -> None:
        """It went well: the next failure is the first one."""
        self._pause_s, self._since = 0.2, time.monotonic()

    def failed(self, error: ApiError | ServerAway) -> None:
        """Wait for the next try, or raise what went wrong."""
        if isinstance(error, ApiError) and not (error.passes or (self._comfort and error.code == NOT_REELRAY)):
            raise error
        asked_s = error.retry_after_s if isinstance(error, ApiError) else 0.0
        pause_s = max(self._pause_s * random.uniform(0.8, 1.0), asked_s)
        if time.monotonic() - self._since + pause_s > self._patience_s:
            if isinstance(error, ApiError) or not self._comfort:
                raise error
            raise ServerAway(f"{error}; away for {self._patience_s:g} s, {self._comfort}") from error
        time.sleep(pause_s)
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)


def raise_refusal(reply: httpx2.Response) -> None:
    """Raise ApiError for a reply that is a refusal."""
    if reply.status_code < 400:
        return
    reply.read()
    try:
        body = reply.json()
    except ValueError:
        body = None
    asked = reply.headers.get("retry-after", "")
    retry_after_s = float(asked) if asked.isdecimal() else 0.0
    if not isinstance(body, dict):
        raise ApiError(reply.status_code, NOT_REELRAY, f"{reply.url} answered {reply.status_code}",
                       retry_after_s=retry_after_s)
    problems = [Problem(detail=str(found.get("detail", "")), pointer=str(found.get("pointer", "")),
                        parameter=str(found.get("parameter", "")), shot=str(found.get("shot", "")),
                        line=found.get("line"), nearest=str(found.get("nearest", "")),
                        file=str(found.get("file", "")))
                for found in body.get("errors", ())]
    raise ApiError(reply.status_code, str(body.get("code", "")), str(body.get("detail", "")), problems,
                   retry_after_s=retry_after_s)
