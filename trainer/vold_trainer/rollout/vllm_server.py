"""One `vllm serve` over HTTP: what it is, its completions by token ids, and the calls that change its weights.

The routes are those of vLLM 0.31 to 0.33. All but /v1/... and /tokenize exist only where the server was started with
VLLM_SERVER_DEV_MODE=1.
"""

import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from vold_trainer.errors import RunError, UsageError

RETRY_SECONDS = 30.0
"""How long a server may be away, or answer 5xx, before the run stops."""
ABORTED_SECONDS = 1.0
"""Between two tries of a completion that the server broke off."""
IN_FLIGHT = 1024
"""Requests to one server at a time. It queues what it cannot run; a connection each is what this bounds."""
CONTROL_SECONDS = 1800.0
"""For a call that moves weights: the server answers when all of them are there."""
START = (
    "start it as `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL` (docs/guides/rollouts.md), reachable by the trainer alone: "
    "these routes change its weights"
)


@dataclass(frozen=True)
class ServerInfo:
    """What a server said of itself. device: cuda, cpu, ... world_size: its workers, over all of its parallel groups."""

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
    """A completion as the server gave it. logprobs: [T]. likely: [T], ids most likely first."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    truncated: bool
    logprobs: tuple[float, ...]
    likely: tuple[tuple[int, ...], ...]


class Server:
    """Made and used on one event loop. Every error names the server's URL and what to do."""

    def __init__(self, url: str, *, name: str = "", key: str | None, key_env: str, timeout: float) -> None:
        self.url = url
        self.name = name or url
        self.key_env = key_env
        self.timeout = timeout
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
        self.client = httpx.AsyncClient(
            base_url="http://vllm" if socket else url,
            transport=httpx.AsyncHTTPTransport(uds=socket, limits=limits) if socket else None,
            limits=limits,
            headers={"authorization": f"Bearer {key}"} if key else {},
        )

    async def close(self) -> None:
        await self.client.aclose()

    async def info(self) -> ServerInfo:
        """Raises UsageError where this is no vLLM server that a trainer can steer."""
        try:
            models = await self._call("GET", "/v1/models", patience=0)
            settings = await self._call("GET", "/server_info", params={"config_format": "json"}, patience=0)
            version = await self._call("GET", "/version", patience=0)
            world = await self._call("GET", "/get_world_size", patience=0)
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
                world_size=int(world["world_size"]),
            )
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            raise UsageError(
                f"rollout.url {self.name}: not what vLLM 0.31 to 0.33 says of itself ({error!r})"
            ) from error

    async def tokenize(self, model: str, text: str) -> list[int]:
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return list((await self._call("POST", "/tokenize", json=body))["tokens"])

    async def complete(self, request: Mapping[str, Any]) -> Reply:
        """One completion. request: the body of /v1/completions, or of /v1/chat/completions where it has messages.

        A completion that the server broke off (it was paused, say) is asked for again: the seed makes it the same one.
        """
        route = "/v1/chat/completions" if "messages" in request else "/v1/completions"
        for attempt in range(3):
            if attempt:
                await asyncio.sleep(attempt * ABORTED_SECONDS)
            answer = await self._call("POST", route, json=request)
            try:
                reply, reason = read_reply(answer)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise RunError(
                    f"rollout.url {self.name}: the reply of {route} is not what vLLM 0.31 to 0.33 answers: {error}"
                ) from error
            if reason in ("stop", "length"):
                return reply
        raise RunError(
            f"rollout.url {self.name}: a completion ended with {reason!r}, three times; see the server's log"
        )

    async def weight_version(self) -> str | None:
        """The label of the weights that it draws from; None where it keeps none."""
        answer = await self._call("GET", "/weight_info", missing={})
        return answer.get("weight_version")

    async def control(self, route: str, *, json: Any = None, params: Mapping[str, str] | None = None) -> Any:
        """POST to a route that changes the server; not repeated, for it may have been done."""
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
        missing: Any = None,
    ) -> Any:
        """The JSON of the answer. patience: seconds of failures in a row that are waited out, RETRY_SECONDS where it is
        None. seconds: for one try. missing: what a route that is not there answers.
        """
        clock = asyncio.get_running_loop().time
        seconds = seconds or self.timeout
        patience = RETRY_SECONDS if patience is None else patience
        began, failing, wait = clock(), None, 0.25
        while True:
            try:
                response = await self.client.request(
                    method, route, json=json, params=params, timeout=httpx.Timeout(seconds, connect=10.0, pool=None)
                )
            except httpx.TimeoutException as error:
                if not isinstance(error, httpx.ConnectTimeout):
                    raise RunError(
                        f"rollout.url {self.name}: no answer from {route} in {seconds:g} s "
                        "(rollout.timeout for a completion). Is the server overloaded, or paused?"
                    ) from error
                problem = "it cannot be reached"
            except httpx.TransportError as error:
                problem = f"it cannot be reached ({type(error).__name__}: {error})"
            except httpx.InvalidURL as error:
                raise UsageError(f"rollout.url {self.name}: not a URL ({error})") from error
            else:
                if response.status_code < 400:
                    return self._json(response, route)
                if response.status_code == 404 and missing is not None:
                    return missing
                problem = self._refused(response, route)
            failing = clock() if failing is None else failing
            if clock() + wait > min(failing + patience, began + self.timeout):
                tried = f" for {clock() - failing:.0f} s" if patience else ""
                raise RunError(f"rollout.url {self.name}{tried}: {problem}. Is `vllm serve` still running there?")
            await asyncio.sleep(wait * random.uniform(0.75, 1.25))
            wait = min(2 * wait, 4.0)

    def _json(self, response: httpx.Response, route: str) -> Any:
        if not response.content:
            return {}
        try:
            return response.json()
        except ValueError as error:
            raise RunError(f"rollout.url {self.name}: {route} answered no JSON: {response.text[:80]!r}") from error

    def _refused(self, response: httpx.Response, route: str) -> str:
        """What is wrong, where waiting may help. Raises where it cannot."""
        status, said = response.status_code, _message(response)
        if status in (401, 403):
            raise UsageError(
                f"rollout.url {self.name}: {status} {said}. The key is taken from the environment variable "
                f"{self.key_env} (rollout.api_key_env)"
            )
        if status == 404:
            raise UsageError(f"rollout.url {self.name}: it has no route {route}: {START}")
        if status < 500 and status != 429:
            raise RunError(f"rollout.url {self.name}: {route} refused: {said}")
        return f"{route} answered {status}: {said}"


def read_reply(answer: Mapping[str, Any]) -> tuple[Reply, str]:
    """(the completion, why it ended) of a reply of /v1/completions or /v1/chat/completions.

    Raises ValueError or KeyError for what cannot be learned from: no ids, or as many log-probabilities as ids are not
    there.
    """
    choice = answer["choices"][0]
    reason = str(choice["finish_reason"])
    prompt, ids = choice.get("prompt_token_ids") or answer.get("prompt_token_ids"), choice.get("token_ids")
    if reason not in ("stop", "length"):
        return Reply((), (), False, (), ()), reason
    if not prompt or not ids:
        raise ValueError("no token_ids and prompt_token_ids, which return_token_ids asks for")
    found = choice["logprobs"]
    if "content" in found:
        logprobs = [place["logprob"] for place in found["content"]]
        ranked = [{top["token"]: top["logprob"] for top in place["top_logprobs"]} for place in found["content"]]
        named = [place["token"] for place in found["content"]]
    else:
        logprobs, ranked, named = found["token_logprobs"], found["top_logprobs"], found["tokens"]
    if [_id(token) for token in named] != list(ids):
        raise ValueError(f"log-probabilities of {len(named)} tokens that are not the {len(ids)} of token_ids")
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in logprobs):
        raise ValueError("a log-probability that is no finite number")
    likely = tuple(
        tuple(_id(token) for token, _ in sorted(row.items(), key=lambda pair: -pair[1])) if row else ()
        for row in ranked
    )
    return Reply(tuple(prompt), tuple(ids), reason == "length", tuple(map(float, logprobs)), likely), reason


def _id(token: str) -> int:
    """Of "token_id:7", as return_tokens_as_token_ids has it."""
    return int(token.removeprefix("token_id:"))


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
        error = body.get("error", body)
        text = error if isinstance(error, str) else error.get("message") or error.get("detail") or str(error)
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(str(text).split())[:400] or response.reason_phrase
