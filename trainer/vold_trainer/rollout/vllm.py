"""Rollouts from vLLM: one or several `vllm serve` by URL, or one that the trainer starts (`rollout.url: local:`).

Prompts go as token ids and completions come back as token ids, with the log-probabilities of the moment in which they
were drawn. An image prompt goes as chat messages, for the server has to see the picture; the ids that it made of them
must be the student's own. Every row is a request of its own, with a seed of its own: it is handed on as soon as it
ends, and what it says does not depend on its neighbours. Rows of one prompt go to the same server, whose prefix cache
computes the prompt once.

Shapes: G completions of a prompt, T completion positions, K ids of a support.
"""

import asyncio
import base64
import hashlib
import io
import os
import queue
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from PIL import Image

from vold_trainer.config import RolloutConfig
from vold_trainer.data import Example
from vold_trainer.errors import RunError, UsageError
from vold_trainer.rollout.base import OnFinished, Rollout, Sampling
from vold_trainer.rollout.vllm_local import LOCAL, serving_student
from vold_trainer.rollout.vllm_server import Reply, Server, ServerInfo
from vold_trainer.rollout.weights import make_transfer
from vold_trainer.student.models import Student
from vold_trainer.tasks import ClientTasks

T = TypeVar("T")

PROBE_IDS = 512
LONGEST_WAIT = timedelta(days=1)
"""For the other processes: the first one may be waiting for a server that loads its weights."""


class VllmEngine:
    """Draws from vLLM servers. Every `sync`, or else the first draw, gives them the student's present weights.

    Of a run's several processes each draws for itself, and the first one gives the weights while all wait.
    """

    own_weights = True

    def __init__(self, student: Student, config: RolloutConfig) -> None:
        """Raises UsageError where a server does not answer, or has another tokenizer than the student."""
        self.student = student
        self.config = config
        self.version = 0
        self.label: str | None = None
        self._started = ExitStack()
        try:
            self.tasks = ClientTasks()
            self._started.callback(self.tasks.close)
            self.processes = Processes()
            self.run = self.processes.from_first(lambda: uuid.uuid4().hex[:8])
            self.servers = self.tasks.run(self._open(self.processes.from_first(self._urls)))
            self._started.callback(lambda: self.tasks.run(self._close()))
            self.infos = [self.tasks.run(self._shake_hands(server)) for server in self.servers]
            self.transfer = make_transfer(config, student, self.servers, self.infos, self.tasks)
            self._started.callback(self.transfer.close)
        except BaseException:
            self._started.close()
            raise

    def close(self) -> None:
        """Stop the server that was started here, and forget the others."""
        self._started.close()

    def _urls(self) -> list[str]:
        asked = self.config.url.split(",") if isinstance(self.config.url, str) else self.config.url
        urls = [url.strip().rstrip("/") for url in asked]
        if not all(url == LOCAL or url.startswith(("http://", "https://")) for url in urls) or urls.count(LOCAL) > 1:
            raise UsageError(
                f"rollout.url is {self.config.url!r}: give http://HOST:PORT of `vllm serve`, several as a list, or "
                f"{LOCAL!r} (once), which starts one"
            )
        if LOCAL not in urls:
            return urls
        started = self._started.enter_context(serving_student(self.student, self.config))
        return [started if url == LOCAL else url for url in urls]

    async def _open(self, urls: Sequence[str]) -> list[Server]:
        key = os.environ.get(self.config.api_key_env) or None
        return [
            Server(
                url,
                name=LOCAL if url.startswith("unix:") else url,
                key=None if url.startswith("unix:") else key,
                key_env=self.config.api_key_env,
                timeout=self.config.timeout,
            )
            for url in urls
        ]

    async def _close(self) -> None:
        await asyncio.gather(*(server.close() for server in self.servers))

    async def _shake_hands(self, server: Server) -> ServerInfo:
        """Raises UsageError where the server cannot serve the student."""
        info = await server.info()
        if info.device == "cpu" and self._ties():
            # It draws from a packed copy of the output head, which a new embedding does not reach.
            raise UsageError(
                f"rollout.url {server.name} is vLLM's CPU build, which keeps the old output head of a student that "
                f"shares it with the embedding (tie_word_embeddings, as {self.student.path!r} does): use rollout.engine"
                "=hf, or vLLM on a GPU"
            )
        tokenizer = self.student.tokenizer
        ids = sorted(set(tokenizer.get_vocab().values()))
        text = tokenizer.decode(ids[:: max(1, len(ids) // PROBE_IDS)])
        mine, theirs = tokenizer(text, add_special_tokens=False)["input_ids"], await server.tokenize(info.model, text)
        if mine != theirs:
            at = first_difference(mine, theirs)
            raise UsageError(
                f"rollout.url {server.name} serves {info.model!r}, whose tokenizer is not that of the student "
                f"{self.student.path!r}: from token {at} of a probe on it has {theirs[at : at + 3]}, the student "
                f"{mine[at : at + 3]}. Serve the student's own folder"
            )
        return info

    def _ties(self) -> bool:
        """Whether the student's embedding is its output head as well."""
        into: Any = self.student.model.get_input_embeddings()
        out: Any = self.student.model.get_output_embeddings()
        return out is not None and into.weight is out.weight

    def sync(self, version: int) -> None:
        """Give every server the student's present weights. Completions under way end first, with the old ones.

        Raises RunError where one does not take them; it then stays paused, for what it has is not known.
        """
        self.processes.wait()
        self.label = self.processes.from_first(lambda: self._give(version))
        self.version = version

    def _give(self, version: int) -> str:
        """Returns what the servers call these weights."""
        label = f"vold-{self.run}-{version}"
        self.tasks.run(self._each("/pause", params={"mode": "wait", "clear_cache": "true"}))
        self.transfer.send(version)
        # Keys, values and image features that the old weights computed: a prompt must not be continued from them.
        for answer in self.tasks.run(self._each("/reset_prefix_cache")):
            if answer.get("success") is False:
                raise RunError(f"rollout.url {self.config.url}: vLLM kept keys and values of the old weights")
        self.tasks.run(self._each("/reset_encoder_cache"))
        self.tasks.run(self._each("/update_weight_version", json={"new_version": label}))
        self.tasks.run(self._each("/resume"))
        return label

    async def _each(self, route: str, **options: Any) -> list[Any]:
        return await asyncio.gather(*(server.control(route, **options) for server in self.servers))

    def generate(
        self,
        examples: Sequence[Example],
        sampling: Sampling,
        *,
        seed: int,
        first_row: int = 0,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        """See Engine. Log-probabilities are kept whether or not they were asked for: they cost nothing here.

        Raises RunError where a server is away for longer than half a minute, or has other weights than it was given;
        UsageError where a prompt, or what is asked, does not fit the server.
        """
        if self.label is None:
            self.sync(self.version)
        keeps = self._logprobs_kept(sampling)
        prompts = [tuple(ids) for ids in self.student.prompt_ids(examples)]
        self._check_lengths(examples, prompts, sampling)
        ended: queue.SimpleQueue[tuple[int, Reply | BaseException]] = queue.SimpleQueue()
        futures: list[Future[None]] = []
        for place, (example, ids) in enumerate(zip(examples, prompts, strict=True)):
            shared = self._request(example, ids, sampling)
            number = (first_row // sampling.group + place) % len(self.servers)
            for index in range(sampling.group):
                row = first_row + place * sampling.group + index
                request = {**shared, "model": self.infos[number].model, "seed": row_seed(seed, row)}
                futures.append(self.tasks.submit(_into(ended, row, self.servers[number].complete(request))))
        finished: dict[int, Rollout] = {}
        try:
            while len(finished) < len(futures):
                new = []
                for row, reply in _waiting(ended):
                    if isinstance(reply, BaseException):
                        raise reply
                    place = (row - first_row) // sampling.group
                    new.append(self._rollout(row, examples[place], prompts[place], reply, sampling, keeps))
                finished.update({rollout.row: rollout for rollout in new})
                if on_finished is not None:
                    on_finished(new)
        finally:
            for future in futures:
                future.cancel()
        self.tasks.run(self._same_weights())
        return [finished[row] for row in sorted(finished)]

    def _logprobs_kept(self, sampling: Sampling) -> bool:
        """Whether what the servers report is the log-probability at sampling.temperature, before top_p.

        Raises UsageError where it is not, and is needed.
        """
        for server, info in zip(self.servers, self.infos, strict=True):
            if info.logprobs_mode == "raw_logprobs":
                right = sampling.temperature in (0, 1)
            else:
                right = info.logprobs_mode == "processed_logprobs" and sampling.top_p == 1
            if not right and sampling.logprobs:
                raise UsageError(
                    f"rollout.temperature is {sampling.temperature} and rollout.top_p {sampling.top_p}: of what is "
                    f"drawn so, rollout.url {server.name} (--logprobs-mode {info.logprobs_mode}) does not report the "
                    "log-probabilities that the objective needs. Set rollout.temperature=1; or set rollout.top_p=1 and "
                    "start the server with --logprobs-mode processed_logprobs"
                )
            if not right:
                return False
            if sampling.candidates > info.max_logprobs >= 0:
                raise UsageError(
                    f"the objective needs the student's {sampling.candidates} most likely ids (objective.top_k), and "
                    f"rollout.url {server.name} gives {info.max_logprobs}: start it with --max-logprobs "
                    f"{sampling.candidates}, or lower objective.top_k"
                )
        return True

    def _check_lengths(self, examples: Sequence[Example], prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        most, name = min((info.max_length, server.name) for server, info in zip(self.servers, self.infos, strict=True))
        for example, ids in zip(examples, prompts, strict=True):
            if len(ids) + sampling.max_tokens > most:
                raise UsageError(
                    f"example {example.id!r}: its prompt has {len(ids)} tokens, and with rollout.max_tokens="
                    f"{sampling.max_tokens} that is more than the {most} of rollout.url {name}: lower "
                    "rollout.max_tokens, or start the server with a larger --max-model-len"
                )

    def _request(self, example: Example, ids: Sequence[int], sampling: Sampling) -> dict[str, Any]:
        """The body for every row of a prompt, seed and model aside. All that decides what is drawn is in it: what is
        left out, the server would take from the model's generation_config.json.
        """
        request = {
            "max_tokens": sampling.max_tokens,
            "n": 1,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,
            "stop_token_ids": self.student.eos_ids,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if self.student.place_ids:
            request["logit_bias"] = {str(token): -100.0 for token in self.student.place_ids}
        if not example.images:
            return {**request, "prompt": list(ids), "logprobs": sampling.candidates}
        messages = messages_with_images(example)
        return {**request, "messages": messages, "logprobs": True, "top_logprobs": sampling.candidates}

    def _rollout(
        self, row: int, example: Example, prompt: tuple[int, ...], reply: Reply, sampling: Sampling, keeps: bool
    ) -> Rollout:
        if reply.prompt_ids != prompt:
            at = first_difference(prompt, reply.prompt_ids)
            raise RunError(
                f"example {example.id!r}: vLLM read a prompt of {len(reply.prompt_ids)} tokens, the student's "
                f"processor makes {len(prompt)} of it (from token {at} on they differ). Serve the student's own "
                "folder, with its chat template and processor"
            )
        candidates = None
        if sampling.candidates:
            if any(len(ids) < sampling.candidates for ids in reply.likely):
                raise RunError(
                    f"vLLM gave fewer than the {sampling.candidates} most likely ids of a position that were asked for"
                )
            candidates = np.array([ids[: sampling.candidates] for ids in reply.likely], np.int64)
        return Rollout(
            row,
            example,
            prompt,
            reply.ids,
            self.student.tokenizer.decode(reply.ids, skip_special_tokens=True),
            reply.truncated,
            logprobs=np.array(reply.logprobs, np.float32) if keeps else None,
            candidates=candidates,
        )

    async def _same_weights(self) -> None:
        """Raises RunError where a server has not the weights that it was given: it began anew, or somebody else's."""
        for server in self.servers:
            found = await server.weight_version()
            if found not in (None, self.label):
                raise RunError(
                    f"rollout.url {server.name} draws from weights {found!r}, and was given {self.label!r}: it was "
                    "restarted, or another run uses it. Give each run servers of its own, and go on with --resume"
                )


class Processes:
    """The processes of a run, each with an engine of its own."""

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.group: Any = dist.new_group(backend="gloo", timeout=LONGEST_WAIT) if several else None

    def wait(self) -> None:
        """Until all are here."""
        if self.group is not None:
            dist.barrier(group=self.group)

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` returns in the first process, in all of them. Where it raises, all do."""
        if self.group is None:
            return work()
        told: list[Any] = [None, None]
        failed = None
        if dist.get_rank() == 0:
            try:
                told[0] = work()
            except Exception as error:
                failed, told[1] = error, f"{error}"
        dist.broadcast_object_list(told, src=0, group=self.group)
        if told[1] is not None:
            raise RunError(told[1]) if failed is None else failed
        return told[0]  # type: ignore[no-any-return]


async def _into(ended: "queue.SimpleQueue[tuple[int, Reply | BaseException]]", row: int, reply: Any) -> None:
    try:
        ended.put((row, await reply))
    except Exception as error:
        ended.put((row, error))


def _waiting(ended: "queue.SimpleQueue[Any]") -> list[Any]:
    """At least one that ended, and all that ended meanwhile."""
    found = [ended.get()]
    while not ended.empty():
        found.append(ended.get())
    return found


def row_seed(seed: int, row: int) -> int:
    """The seed of a row's request, below 2^63: a hash, so that no two rows of any two steps share one by design."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{row}".encode()).digest()[:8], "big") >> 1


def first_difference(mine: Sequence[int], theirs: Sequence[int]) -> int:
    """Where two lists that are not the same part."""
    pairs = zip(mine, theirs, strict=False)
    return next((place for place, (own, other) in enumerate(pairs) if own != other), min(len(mine), len(theirs)))


def messages_with_images(example: Example) -> list[dict[str, Any]]:
    """The messages as OpenAI's chat API has them, every image part with its picture, losslessly."""
    images = iter(example.images)

    def part(item: Any) -> dict[str, Any]:
        if item["type"] != "image":
            return dict(item)
        return {"type": "image_url", "image_url": {"url": _data_url(next(images))}}

    return [
        {
            **message,
            "content": message["content"]
            if isinstance(message["content"], str)
            else [part(item) for item in message["content"]],
        }
        for message in example.messages
    ]


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
