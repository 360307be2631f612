"""Answers of an endpoint of OpenAI's API (POST /chat/completions): text, from teachers that give no log-probabilities.

https://platform.openai.com/docs/api-reference/chat/create
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
from vold_client import Internal, InvalidArgument, ResourceExhausted, Tls, Unavailable, VoldError
from vold_client.errors import connection_error, deadline_exceeded, from_http
from vold_client.keys import KEY_REFUSED, ApiKey, KeySource
from vold_client.replicas import Throttled
from vold_client.types import Identity

from vold_trainer.coldstart.answers import Answer, Described, Messages
from vold_trainer.config import TracesConfig
from vold_trainer.errors import UsageError
from vold_trainer.services.keys import describe_key

SEED_BITS = 31
"""Servers take seeds of different sizes; all take this one."""

MAX_REPLY_BYTES = 64 << 20

FIRST_PAUSE, MAX_PAUSE = 1.0, 60.0
"""Seconds before a call is sent again that was refused without a retry delay; doubled each time."""

NO_QUOTA = "insufficient_quota"
"""OpenAI's code of a refusal that no wait ends."""


class OpenAISource:
    """One endpoint. url: as in the config. throttled: as for AsyncTeacherClient."""

    def __init__(self, url: str, config: TracesConfig, key: KeySource, tls: Tls | None, throttled: Throttled) -> None:
        self.url = url
        self.config = config
        self.model = config.teacher.model
        self._throttled = throttled
        self._source = key
        self._key = ApiKey(key)
        self._was_accepted = False
        self._limit_name = "max_tokens"
        base = url.removeprefix("openai+").rstrip("/") + "/"
        self._client = httpx.AsyncClient(
            base_url=base,
            verify=(tls or Tls()).ssl_context() if base.startswith("https:") else False,
            timeout=httpx.Timeout(None, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def describe(self) -> Described:
        """Raises UsageError if the config names no model and the endpoint has not just one."""
        if not self.model:
            models = [str(row.get("id")) for row in _rows(await self._send("GET", "models"))]
            if len(models) != 1:
                listed = ", ".join(models[:8]) or "none"
                raise UsageError(f"teacher.model is empty, and {self.url} has {listed}: set it to one of them")
            self.model = models[0]
        return Described(Identity(model=self.model), in_flight=0, seeded=True)

    async def answer(self, messages: Messages, seed: int | None) -> Answer:
        while True:
            name = self._limit_name
            try:
                answer = self._read(await self._complete(self._body(messages, seed, name)))
            except KEY_REFUSED as error:
                if self._was_accepted:  # it may be replaced
                    raise
                origin = describe_key(self.config.teacher, "teacher", self._source)
                raise UsageError(f"teacher.url: {error}. {origin}") from error
            except InvalidArgument as error:
                # OpenAI's newer models refuse the older name of the field.
                if name != "max_tokens" or "max_completion_tokens" not in error.message:
                    raise
                self._limit_name = "max_completion_tokens"
            else:
                self._was_accepted = True
                return answer

    async def ready(self, seconds: float) -> None:
        """Endpoints need not list their models: any answer but a failure shows that this one is up."""
        try:
            await self._send("GET", "models", seconds=seconds)
        except VoldError as error:
            if error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                raise

    async def aclose(self) -> None:
        await self._client.aclose()

    def _body(self, messages: Messages, seed: int | None, limit_name: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            limit_name: self.config.max_tokens,
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "seed": None if seed is None else seed >> (64 - SEED_BITS),
            "chat_template_kwargs": self.config.teacher.chat_template_kwargs or None,
            **self.config.openai_body,
        }
        return {name: value for name, value in body.items() if value is not None}

    async def _complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply, after what the endpoint refuses for now was sent again."""
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._send("POST", "chat/completions", body)
            except ResourceExhausted as error:
                if NO_QUOTA in error.message:
                    raise UsageError(f"teacher.url: {error}") from error
                seconds, pause = error.retry_seconds or pause, min(2 * pause, MAX_PAUSE)
                await self._throttled(error, seconds)

    async def _send(
        self, verb: str, path: str, body: Mapping[str, Any] | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        while True:
            key, header = self._key.value, self._key.header
            try:
                async with asyncio.timeout(self.config.teacher.timeout if seconds is None else seconds):
                    response, content = await self._exchange(verb, path, body, header)
            except TimeoutError:
                raise deadline_exceeded(self.url) from None
            except httpx.TransportError as error:
                raise connection_error(str(error) or type(error).__name__, self.url) from None
            if response.is_success:
                return self._object(content)
            refusal = from_http(response.status_code, "", _said(content), self.url, _retry_after(response))
            if response.status_code >= 500 and refusal.code == "INTERNAL":
                refusal = _unavailable(refusal)
            if not (isinstance(refusal, KEY_REFUSED) and self._key.renew(key)):
                raise refusal

    async def _exchange(
        self, verb: str, path: str, body: Mapping[str, Any] | None, header: str | None
    ) -> tuple[httpx.Response, bytes]:
        headers = {"authorization": header} if header else {}
        content = bytearray()
        async with self._client.stream(verb, path, json=body, headers=headers) as response:
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_REPLY_BYTES:
                    raise Internal(f"the reply has more than {MAX_REPLY_BYTES} bytes", url=self.url)
        return response, bytes(content)

    def _object(self, content: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(content)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise Internal("the reply is no JSON object: is this the base URL of the API?", url=self.url)
        return reply

    def _read(self, reply: Mapping[str, Any]) -> Answer:
        try:
            choice = reply["choices"][0]
            message = choice["message"]
            content = message.get("content") or ""
            reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
            if not isinstance(content, str) or not isinstance(reasoning, str):
                raise TypeError("content")
        except (LookupError, TypeError, AttributeError):
            raise Internal("the reply has no choices[0].message with a text", url=self.url) from None
        # A server that parses the reasoning out of the text gives it beside the answer.
        text = f"<think>\n{reasoning.strip()}\n</think>\n\n{content}" if reasoning.strip() and content else content
        usage = reply.get("usage")
        usage = usage if isinstance(usage, Mapping) else {}
        return Answer(
            text=text,
            ids=None,
            finish_reason=str(choice.get("finish_reason") or ""),
            tokens=_count(usage.get("completion_tokens")),
            prompt_tokens=_count(usage.get("prompt_tokens")),
            identity=Identity(model=self.model),
        )


def _rows(reply: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = reply.get("data")
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _said(content: bytes) -> bytes:
    """The code and the message of an error's body, or the body as it is."""
    try:
        error = json.loads(content)["error"]
        return f"{error.get('code') or error.get('type') or 'error'}: {error['message']}".encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return content


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**31 else None


def _retry_after(response: httpx.Response) -> str:
    """The header in whole seconds, rounded up: some servers write fractions."""
    text = response.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        return ""
    return str(-int(-seconds // 1)) if 0 <= seconds < 10**6 else ""


def _unavailable(error: VoldError) -> VoldError:
    """A failure of the server (5xx), for which the call is sent again."""
    return Unavailable(error.message, retry_seconds=error.retry_seconds, url=error.url)
