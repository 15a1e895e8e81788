"""A file that an API's answer points to: fetched without the key, from public hosts or the API's own, and bounded.

Whoever answers chooses the address. Without a guard that is every service that trusts this machine's network.
"""

from __future__ import annotations

import asyncio

import httpx2

from configs.settings import WebhookSettings
from serve_app.providers.wire import TRANSIENT, ApiFailure, read_bounded
from serve_app.webhooks.guard import Guard, Unresolved
from workflows.errors import InvalidDocument, WebhookFailed

_GUARD = Guard(WebhookSettings(allow_http=True))


async def fetch_file(url: str, *, api_url: str, timeout_s: float, max_bytes: int) -> bytes:
    """The file at `url`, which must not redirect. Raises ApiFailure."""
    if not url.lower().startswith(("http://", "https://")):
        raise ApiFailure("the answer points to a file that is neither http nor https", final=True)
    try:
        target = _GUARD.parse(url)
        own = _GUARD.parse(api_url)
        trusted = (target.scheme, target.host, target.port) == (own.scheme, own.host, own.port)
        address = target.host if trusted else (await asyncio.to_thread(_GUARD.addresses, target))[0]
    except Unresolved as error:  # a resolver may answer the next time
        raise ApiFailure(f"the answer points to a file that cannot be fetched: {error.reason}") from None
    except (InvalidDocument, WebhookFailed) as error:
        text = error.problems[0].problem if isinstance(error, InvalidDocument) else error.reason.partition(";")[0]
        raise ApiFailure(f"the answer points to a file that is not fetched: {text}; have the API send b64_json",
                         final=True) from None
    # The address that was looked at is the one that is connected to; the name goes into Host and into TLS.
    place = httpx2.URL(url).copy_with(host=address)
    headers = {"Host": target.authority, "Accept-Encoding": "identity"}
    try:
        async with asyncio.timeout(timeout_s), httpx2.AsyncClient(
                timeout=timeout_s, follow_redirects=False, trust_env=False) as client, client.stream(
                "GET", place, headers=headers, extensions={"sni_hostname": target.host}) as reply:
            body = await read_bounded(reply, max_bytes, target.host)
    except TimeoutError:
        raise ApiFailure(f"{target.host} gave no file within {timeout_s:g} s (timeout_s)") from None
    except (httpx2.HTTPError, OSError) as error:
        raise ApiFailure(f"{target.host} cannot be asked for the file: {type(error).__name__}") from None
    if not reply.is_success:
        raise ApiFailure(f"{target.host} answers {reply.status_code} instead of the file", status=reply.status_code,
                         final=reply.status_code < 500 and reply.status_code not in TRANSIENT)
    return body
