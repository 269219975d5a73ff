"""Asks Fairvisor Edge before LiteLLM calls a model, and settles token limits with the usage of the response.

A callback of the LiteLLM proxy: put this file beside its configuration and name `edge_guard.guard` in
`litellm_settings.callbacks`. It reads EDGE_URL, EDGE_TIMEOUT_S, EDGE_FAIL_OPEN and EDGE_DECISION_TOKEN from the
environment. It imports nothing of Fairvisor and knows no policies: it describes the request and does what is answered.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections import OrderedDict
from typing import Any
from urllib.parse import urlsplit

import httpx
from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger

_log = logging.getLogger(__name__)

# What a client must not tell Fairvisor, and what belongs to its own connection (RFC 9110 7.6.1).
_DROPPED = frozenset(
    [
        "host",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "transfer-encoding",
        "content-length",
        "expect",
        "accept-encoding",
        "content-encoding",  # of what the client sent: the question has the body as LiteLLM read it
        "forwarded",
        "x-country-code",
        "x-asn",
        "x-asn-type",
        "x-tor-exit",
        "x-token-estimate",
        "x-litellm-key-hash",
        "x-litellm-team",
        "x-litellm-user",
    ]
)
_DROPPED_PREFIXES = ("x-original-", "x-forwarded-", "x-fairvisor-")
_SHOWN = ("ratelimit", "ratelimit-policy", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")
_REFUSAL = (
    *_SHOWN,
    "cache-control",
    "retry-after",
    "www-authenticate",
    "x-fairvisor-reason",
    "x-should-retry",
    "x-fairvisor-loop-count",
)
_TICKET = "fairvisor_ticket"
_MOST_OPEN = 100_000  # reservations that wait for their response; the oldest are forgotten, and stand


class FairvisorGuard(CustomLogger):
    """One for each process of the proxy."""

    def __init__(self) -> None:
        super().__init__()
        token = os.environ.get("EDGE_DECISION_TOKEN")
        self._own = {"x-fairvisor-token": token} if token else {}
        self._fail_open = os.environ.get("EDGE_FAIL_OPEN", "false") == "true"
        self._url = os.environ.get("EDGE_URL", "http://127.0.0.1:8080")
        self._timeout_s = float(os.environ.get("EDGE_TIMEOUT_S", "1"))
        self._client: httpx.AsyncClient | None = None
        # The reservation itself stays here: what LiteLLM keeps with a request it may log or send on.
        self._open: OrderedDict[str, str] = OrderedDict()

    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: Any, call_type: str) -> Any:
        """Refuse with Fairvisor's own answer, or remember the reservation."""
        sent = data.get("proxy_server_request") or {}
        body = json.dumps(sent.get("body") or {}, default=str).encode()
        try:
            answer = await self._post("/v1/decision", _question(sent, data, user_api_key_dict), body)
        except httpx.HTTPError as error:
            return self._undecided(data, str(error) or type(error).__name__)
        if answer.status_code in (200, 204):
            self._remember(data, answer.headers.get("x-fairvisor-reservation"))
            return data
        if 400 <= answer.status_code < 500:
            headers = {name: answer.headers[name] for name in _REFUSAL if name in answer.headers}
            raise HTTPException(answer.status_code, detail=_message(answer), headers=headers)
        return self._undecided(data, f"status {answer.status_code}")

    async def async_log_success_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """The model answered: the difference between what was reserved and what was used is settled."""
        usage = getattr(response_obj, "usage", None)
        if usage is not None:
            await self._settle(kwargs, {"usage": json.loads(usage.model_dump_json(exclude_none=True))})

    async def async_log_failure_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """The model did not answer: everything is given back."""
        await self._settle(kwargs, {"failed": True})

    def _undecided(self, data: Any, why: str) -> Any:
        _log.error("fairvisor gave no decision: %s", why)
        if not self._fail_open:
            raise HTTPException(
                503,
                detail="The request could not be decided.",
                headers={"cache-control": "no-store", "retry-after": "1"},
            )
        return data

    def _remember(self, data: Any, reservation: str | None) -> None:
        metadata = data.setdefault("litellm_metadata" if "litellm_metadata" in data else "metadata", {})
        metadata.pop(_TICKET, None)  # a client may have sent one
        if reservation:
            metadata[_TICKET] = ticket = secrets.token_hex(16)
            self._open[ticket] = reservation
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)

    async def _settle(self, kwargs: Any, outcome: dict[str, Any]) -> None:
        metadata = (kwargs.get("litellm_params") or {}).get("metadata") or {}
        reservation = self._open.pop(metadata.get(_TICKET, ""), None)
        if reservation is None:
            return
        body = json.dumps({"reservation": reservation, **outcome}).encode()
        try:
            answer = await self._post("/v1/usage", {}, body)
        except httpx.HTTPError as error:
            _log.warning("fairvisor did not settle a reservation: %s", error)
        else:
            if answer.status_code != 204:
                _log.warning("fairvisor did not settle a reservation: %s", answer.text)

    async def _post(self, path: str, headers: dict[str, str], body: bytes) -> httpx.Response:
        if self._client is None:
            self._client = httpx.AsyncClient(base_url=self._url, timeout=self._timeout_s)
        headers = headers | self._own | {"content-type": "application/json"}
        return await self._client.post(path, headers=headers, content=body)


def _question(sent: Any, data: Any, key: Any) -> dict[str, str]:
    """The request as the client sent it, and whom LiteLLM took it for."""
    url = urlsplit(str(sent.get("url", "/")))
    headers = {
        name: value
        for name, value in ((name.lower(), value) for name, value in (sent.get("headers") or {}).items())
        if name not in _DROPPED and not name.startswith(_DROPPED_PREFIXES) and "_" not in name
    }
    metadata = data.get("litellm_metadata") or data.get("metadata") or {}
    known = {
        "x-original-method": sent.get("method", "POST"),
        "x-original-uri": f"{url.path or '/'}{'?' if url.query else ''}{url.query}",
        "x-original-host": url.netloc,
        "x-forwarded-for": metadata.get("requester_ip_address"),
        "x-litellm-key-hash": getattr(key, "token", None),
        "x-litellm-team": getattr(key, "team_id", None),
        "x-litellm-user": getattr(key, "user_id", None),
    }
    return headers | {name: str(value) for name, value in known.items() if value}


def _message(answer: httpx.Response) -> Any:
    """Fairvisor's error as LiteLLM words errors."""
    try:
        return answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return answer.text


guard = FairvisorGuard()
