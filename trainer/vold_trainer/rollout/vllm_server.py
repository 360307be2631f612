"""Client of a `vllm serve` server over HTTP: its settings, completions as token ids, and calls that change its weights.

The routes are those of vLLM 0.31 to 0.33. All but /v1/... and /tokenize exist only if the server was started with
VLLM_SERVER_DEV_MODE=1.
"""

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from vold_client import KeySource
from vold_client.keys import ApiKey
from vold_proto.proxies import proxy_remedy

from vold_trainer.errors import RunError, UsageError

RETRY_SECONDS = 30.0
"""Seconds for which a server may be away, answer 5xx, or refuse a key that it has accepted, before the run stops."""
KEY_REFUSED = (401, 403)
RUNNING = "Is `vllm serve` still running there?"
ABORTED_SECONDS = 1.0
"""Seconds before a completion that the server aborted is requested again; doubled the second time."""
IN_FLIGHT = 1024
"""Requests to one server at a time. The server queues requests; this bounds the number of connections."""
CONTROL_SECONDS = 1800.0
"""Time limit of a call that transfers weights: the server answers after the last weight."""
START_ADVICE = (
    "start it as `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL` (docs/guides/rollouts.md), reachable by the trainer alone: "
    "these routes change its weights"
)


@dataclass(frozen=True)
class ServerInfo:
    """Settings that a server reports. device: cuda, cpu, ... world_size: workers in all of its parallel groups."""

    model: str
    version: str
    max_length: int
    max_logprobs: int
    logprobs_mode: str
    transfer: str | None
    device: str
    world_size: int


@dataclass(frozen=True)
class Reply:
    """A completion from the server. logprobs: [T]. top_ids: [T], the most likely ids at each position, in order."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    truncated: bool
    logprobs: tuple[float, ...]
    top_ids: tuple[tuple[int, ...], ...]


class RefusedError(RunError):
    """The server refuses what a request contains. A retry does not help."""


class Server:
    """A vLLM server. Create and use it on one event loop. Every error names the server's URL and the remedy."""

    def __init__(
        self, url: str, *, name: str = "", key: KeySource, key_origin: Callable[[], str], timeout: float
    ) -> None:
        """key_origin: a sentence that says where the key is from."""
        self.url = url
        self.name = name or url
        self.api_key = ApiKey(key)
        self.key_origin = key_origin
        self.key_accepted = False
        self.timeout = timeout
        if url.rstrip("/").endswith("/v1") and not url.startswith("unix:"):
            raise UsageError(f"rollout.url {self.name} ends in /v1, which the trainer adds to it: leave that out")
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
        self.client = httpx.AsyncClient(
            base_url="http://vllm" if socket else url,
            transport=httpx.AsyncHTTPTransport(uds=socket, limits=limits) if socket else None,
            limits=limits,
        )

    async def close(self) -> None:
        await self.client.aclose()

    async def info(self) -> ServerInfo:
        """Request the server's settings. Raises UsageError if it is not a vLLM server with the needed routes."""
        try:
            models = await self._call("GET", "/v1/models", patience=0)
            settings = await self._call("GET", "/server_info", params={"config_format": "json"}, patience=0)
            version = await self._call("GET", "/version", patience=0)
            workers = await self._call("GET", "/get_world_size", patience=0)
        except RunError as error:
            raise UsageError(str(error)) from error
        try:
            model = next(card for card in models["data"] if not card.get("parent"))
            config = settings["vllm_config"]
            return ServerInfo(
                model=model["id"],
                version=version["version"],
                max_length=int(model["max_model_len"]),
                max_logprobs=int(config["model_config"]["max_logprobs"]),
                logprobs_mode=str(config["model_config"]["logprobs_mode"]),
                transfer=(config.get("weight_transfer_config") or {}).get("backend"),
                device=str((config.get("device_config") or {}).get("device", "")),
                world_size=int(workers["world_size"]),
            )
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            raise UsageError(
                f"rollout.url {self.name}: the settings are not those of vLLM 0.31 to 0.33 ({error!r})"
            ) from error

    async def tokenize(self, model: str, text: str) -> list[int]:
        """The ids of a text in the server's tokenizer, without special tokens."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return list((await self._call("POST", "/tokenize", json=body))["tokens"])

    async def complete(self, request: Mapping[str, Any]) -> Reply:
        """Request a completion. request: the body of /v1/completions, or of /v1/chat/completions if it has messages.

        A completion that the server aborted, for example when it was paused, is requested again. The seed in the
        request makes the result the same.
        """
        route = "/v1/chat/completions" if "messages" in request else "/v1/completions"
        for attempt in range(3):
            if attempt:
                await asyncio.sleep(attempt * ABORTED_SECONDS)
            body = await self._call("POST", route, json=request)
            try:
                reply, reason = read_reply(body)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise RunError(
                    f"rollout.url {self.name}: the reply of {route} is not that of vLLM 0.31 to 0.33: {error}"
                ) from error
            if reason in ("stop", "length"):
                return reply
        raise RunError(
            f"rollout.url {self.name}: a completion ended with {reason!r}, three times; see the server's log"
        )

    async def weight_version(self) -> str | None:
        """The label of the server's weights; None if the server has none."""
        body = await self._call("GET", "/weight_info", if_not_found={})
        return body.get("weight_version")

    async def control(self, route: str, *, json: Any = None, params: Mapping[str, str] | None = None) -> Any:
        """POST to a route that changes the server. The call is not repeated, because it may have had its effect."""
        return await self._call("POST", route, json=json, params=params, patience=0, seconds=CONTROL_SECONDS)

    async def _call(
        self,
        method: str,
        route: str,
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        patience: float | None = None,
        seconds: float | None = None,
        if_not_found: Any = None,
    ) -> Any:
        """Send a request, repeat it if the failure may be temporary, and return the JSON of the reply.

        patience: seconds of consecutive failures before giving up, RETRY_SECONDS by default. seconds: time limit of an
        attempt, rollout.timeout by default. if_not_found: returned in place of an error 404.
        """
        clock = asyncio.get_running_loop().time
        seconds = seconds or self.timeout
        patience = RETRY_SECONDS if patience is None else patience
        started, failing_since, wait = clock(), None, 0.25
        while True:
            key = self.api_key.value
            response = await self._attempt(method, route, seconds, json=json, params=params)
            if isinstance(response, str):
                problem = response
            elif response.status_code < 400:
                self.key_accepted = True
                return self._json(response, route)
            elif response.status_code in KEY_REFUSED and self.api_key.renew(key):
                continue
            elif response.status_code == 404 and if_not_found is not None:
                return if_not_found
            else:
                problem = self._temporary_problem(response, route)
            failing_since = clock() if failing_since is None else failing_since
            if clock() + wait > min(failing_since + patience, started + self.timeout):
                duration = f" for {clock() - failing_since:.0f} s" if patience else ""
                raise RunError(f"rollout.url {self.name}{duration}: {problem}")
            await asyncio.sleep(wait * random.SystemRandom().uniform(0.75, 1.25))
            wait = min(2 * wait, 4.0)

    async def _attempt(self, method: str, route: str, seconds: float, **content: Any) -> httpx.Response | str:
        """Send a request once. Returns the response, or a message if the server cannot be reached."""
        timeout = httpx.Timeout(seconds, connect=10.0, pool=None)
        try:
            header = self.api_key.header
            headers = {"authorization": header} if header else {}
            return await self.client.request(method, route, timeout=timeout, headers=headers, **content)
        except httpx.ConnectTimeout:
            return f"it cannot be reached. {self._remedy()}"
        except httpx.TimeoutException as error:
            raise RunError(
                f"rollout.url {self.name}: no answer from {route} in {seconds:g} s "
                "(rollout.timeout for a completion). Is the server overloaded, or paused?"
            ) from error
        except httpx.TransportError as error:
            return f"it cannot be reached ({type(error).__name__}: {error}). {self._remedy()}"
        except httpx.InvalidURL as error:
            raise UsageError(f"rollout.url {self.name}: not a URL ({error})") from error

    def _json(self, response: httpx.Response, route: str) -> Any:
        if not response.content:
            return {}
        try:
            return response.json()
        except ValueError as error:
            raise RunError(f"rollout.url {self.name}: {route} answered no JSON: {response.text[:80]!r}") from error

    def _temporary_problem(self, response: httpx.Response, route: str) -> str:
        """Describe an error reply that may be temporary. Raises if the error is permanent."""
        status, message = response.status_code, _message(response)
        if status in KEY_REFUSED:
            problem = f"{status} {message}. {self.key_origin()}"
            if not self.key_accepted:
                raise UsageError(f"rollout.url {self.name}: {problem}")
            return problem
        if status == 404:
            raise UsageError(f"rollout.url {self.name}: it has no route {route}: {START_ADVICE}")
        if status < 500 and status != 429:
            kind = RefusedError if status in (400, 413, 422) else RunError
            raise kind(f"rollout.url {self.name}: {route} refused: {message}")
        return f"{route} answered {status}: {message}. {self._remedy()}"

    def _remedy(self) -> str:
        return " ".join(filter(None, (RUNNING, proxy_remedy(self.url))))


def read_reply(body: Mapping[str, Any]) -> tuple[Reply, str]:
    """The completion and the finish reason in a reply of /v1/completions or /v1/chat/completions.

    Raises ValueError or KeyError if ids are missing, or if the log-probabilities do not match the ids.
    """
    choice = body["choices"][0]
    reason = str(choice["finish_reason"])
    prompt, ids = choice.get("prompt_token_ids") or body.get("prompt_token_ids"), choice.get("token_ids")
    if reason not in ("stop", "length"):
        return Reply((), (), False, (), ()), reason
    if not prompt or not ids:
        raise ValueError("no token_ids and prompt_token_ids, which return_token_ids asks for")
    reported = choice["logprobs"]
    if "content" in reported:  # /v1/chat/completions
        positions = reported["content"]
        logprobs = [position["logprob"] for position in positions]
        top_logprobs = [{top["token"]: top["logprob"] for top in position["top_logprobs"]} for position in positions]
        tokens = [position["token"] for position in positions]
    else:
        logprobs, top_logprobs, tokens = reported["token_logprobs"], reported["top_logprobs"], reported["tokens"]
    if [_id(token) for token in tokens] != list(ids):
        raise ValueError(f"log-probabilities of {len(tokens)} tokens that are not the {len(ids)} of token_ids")
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in logprobs):
        raise ValueError("a log-probability that is not a finite number")
    top_ids = tuple(
        tuple(_id(token) for token, _ in sorted(top.items(), key=lambda pair: -pair[1])) if top else ()
        for top in top_logprobs
    )
    return Reply(tuple(prompt), tuple(ids), reason == "length", tuple(map(float, logprobs)), top_ids), reason


def _id(token: str) -> int:
    """The id in "token_id:7", the format of return_tokens_as_token_ids."""
    return int(token.removeprefix("token_id:"))


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
        error = body.get("error", body)
        text = error if isinstance(error, str) else error.get("message") or error.get("detail") or str(error)
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(str(text).split())[:400] or response.reason_phrase
