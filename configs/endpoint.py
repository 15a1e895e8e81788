"""Endpoint: somebody else's HTTP API that speaks OpenAI's words, and the name under which the key to it is found."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import field_validator

from configs.base import Frozen

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Endpoint(Frozen):
    """Where an API is and which of its models is meant. Holds the name of a key, never a key: settings are printed."""

    api_url: str = ""
    """Base address up to and with the version, e.g. `https://api.openai.com/v1`."""
    model_name: str = ""
    """As the API calls it."""
    api_key_env: str = ""
    """Environment variable with the key, where the Director and the replicas run; empty: no key, or `api_key_file`."""
    api_key_file: Path | None = None
    """File with the key alone in it, read at every use, so that a new key needs no restart."""

    @field_validator("api_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        if not url:
            return url
        try:
            parts = urlsplit(url)
            complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            complete = False
        # Said without the text itself: people paste keys into addresses.
        if not complete or not url.isascii() or any(char.isspace() for char in url):
            raise ValueError("is no address; nearest valid: https://api.openai.com/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("holds a user, a password or a query; the key belongs into api_key_env or api_key_file")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _is_a_variable(cls, name: str) -> str:
        if name and not _VARIABLE.fullmatch(name):
            raise ValueError("is the name of an environment variable, never the key itself; nearest valid: "
                             "OPENAI_API_KEY")
        if name.startswith("REELRAY_"):
            raise ValueError("must not begin with REELRAY_: such variables are settings; nearest valid: OPENAI_API_KEY")
        return name
