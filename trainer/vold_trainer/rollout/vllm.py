"""Rollouts from vLLM: `vllm serve` servers by URL, or a server that the trainer starts (`rollout.url: local:`).

Prompts and completions travel as token ids; completions carry their log-probabilities at sampling time. An image prompt
is sent as chat messages, because the server needs the image. The prompt ids that the server reports have to equal the
student's. Each row is a separate request with its own seed: its completion is returned as soon as it ends, and does not
depend on the other rows. The rows of a prompt go to the same server, whose prefix cache computes the prompt once.

Shapes: G completions of a prompt, T completion positions, K candidates.
"""

import asyncio
import queue
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch.distributed as dist

from vold_trainer.config import RolloutConfig
from vold_trainer.data import Example
from vold_trainer.data.faults import OnFault, PromptTooLongError, RowError, RowFault
from vold_trainer.errors import RunError, UsageError
from vold_trainer.rollout.base import OnFinished, Rollout, Sampling
from vold_trainer.rollout.vllm_local import LOCAL, serve_student
from vold_trainer.rollout.vllm_requests import first_difference, read_reply, request_body, row_seed
from vold_trainer.rollout.vllm_server import RefusedError, Reply, Server, ServerInfo
from vold_trainer.rollout.weights import make_transfer
from vold_trainer.services.keys import api_key, describe_key
from vold_trainer.services.readiness import Waiting
from vold_trainer.student.models import Student
from vold_trainer.student.readable import for_readable
from vold_trainer.tasks import ClientTasks

T = TypeVar("T")

Results: TypeAlias = "queue.SimpleQueue[tuple[int, Reply | BaseException]]"
"""(row, reply or error) of each request that has ended."""

HANDSHAKE_SECONDS = 60.0
"""Seconds for the settings of a server and the comparison of tokenizers."""
PROBE_IDS = 512
"""Token ids that the comparison of tokenizers samples from the vocabulary."""
GROUP_TIMEOUT = timedelta(days=1)
"""Of collective operations: the main process may wait for a server that loads its weights."""


class VllmEngine:
    """Generates on vLLM servers. `sync`, or else the first `generate`, sends the student's weights to them.

    In a run of several processes, each process generates its own rows, and the main process sends the weights.
    """

    own_weights = True

    def __init__(self, student: Student, config: RolloutConfig) -> None:
        """Raises UsageError if a server does not answer, or has another tokenizer than the student."""
        self.student = student
        self.config = config
        self.version = 0
        self.weights_label: str | None = None
        self._resources = ExitStack()
        try:
            self.tasks = ClientTasks()
            self._resources.callback(self.tasks.close)
            self.processes = ProcessGroup()
            self.run_id = self.processes.run_on_main(lambda: uuid.uuid4().hex[:8])
            self.servers = self.tasks.run(self._connect(self.processes.run_on_main(self._server_urls)))
            self._resources.callback(lambda: self.tasks.run(self._disconnect()))
            self.infos = [self.tasks.run(self._wait_for_handshake(server)) for server in self.servers]
            self.transfer = make_transfer(config, student, self.servers, self.infos, self.tasks)
            self._resources.callback(self.transfer.close)
        except BaseException:
            self._resources.close()
            raise

    def close(self) -> None:
        """Stop the local server, and disconnect from the others."""
        self._resources.close()

    def _server_urls(self) -> list[str]:
        """The URLs of the servers. Starts the local server, if the config names one."""
        configured = self.config.url.split(",") if isinstance(self.config.url, str) else self.config.url
        urls = [url.strip().rstrip("/") for url in configured]
        if not all(url == LOCAL or url.startswith(("http://", "https://")) for url in urls) or urls.count(LOCAL) > 1:
            raise UsageError(
                f"rollout.url is {self.config.url!r}: give http://HOST:PORT of `vllm serve`, several as a list, or "
                f"{LOCAL!r} (once), which starts one"
            )
        if LOCAL not in urls:
            return urls
        local = self._resources.enter_context(serve_student(self.student, self.config))
        return [local if url == LOCAL else url for url in urls]

    async def _connect(self, urls: Sequence[str]) -> list[Server]:
        key = api_key(self.config, "rollout")
        return [
            Server(
                url,
                name=LOCAL if url.startswith("unix:") else url,
                key=None if url.startswith("unix:") else key,
                key_origin=partial(describe_key, self.config, "rollout", key),
                timeout=self.config.timeout,
            )
            for url in urls
        ]

    async def _disconnect(self) -> None:
        await asyncio.gather(*(server.close() for server in self.servers))

    async def _wait_for_handshake(self, server: Server) -> ServerInfo:
        """Complete the handshake within HANDSHAKE_SECONDS."""
        waiting = Waiting(f"rollout.url {server.name} to answer", HANDSHAKE_SECONDS)
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                return await waiting.during(self._handshake(server))
        except TimeoutError as error:
            raise UsageError(
                f"rollout.url {server.name}: no answer within {HANDSHAKE_SECONDS:g} s. Is it `vllm serve`, and idle?"
            ) from error

    async def _handshake(self, server: Server) -> ServerInfo:
        """Return the server's info. Raises UsageError if the server cannot serve the student."""
        info = await server.info()
        if info.device == "cpu" and self._ties_embeddings():
            # vLLM's CPU build computes logits with a packed copy of the output head, which new weights do not change.
            raise UsageError(
                f"rollout.url {server.name} is vLLM's CPU build, which keeps the old output head of a student that "
                f"shares it with the embedding (tie_word_embeddings, as {self.student.path!r} does): use rollout.engine"
                "=hf, or vLLM on a GPU"
            )
        tokenizer = self.student.tokenizer
        ids = sorted(set(tokenizer.get_vocab().values()))
        added = [token.id for token in self.student.added_tokens]
        text = tokenizer.decode(ids[:: max(1, len(ids) // PROBE_IDS)] + added)
        student_ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        server_ids = await server.tokenize(info.model, text)
        if student_ids != server_ids:
            start = first_difference(student_ids, server_ids)
            raise UsageError(
                f"rollout.url {server.name} serves {info.model!r}, whose tokenizer is not that of the student "
                f"{self.student.path!r}: from token {start} of a probe on, the server has "
                f"{server_ids[start : start + 3]}, the student {student_ids[start : start + 3]}. Serve the student's "
                "own folder"
            )
        return info

    def _ties_embeddings(self) -> bool:
        """Whether the student's output head shares its weights with the embedding."""
        embedding: Any = self.student.model.get_input_embeddings()
        head: Any = self.student.model.get_output_embeddings()
        return head is not None and embedding.weight is head.weight

    def sync(self, version: int) -> None:
        """Send the student's current weights to every server. Completions in flight end first, with the old weights.

        Raises RunError if the transfer to a server fails. The server then stays paused, because its weights are
        unknown.
        """
        self.processes.barrier()
        self.weights_label = self.processes.run_on_main(lambda: self._send_weights(version))
        self.version = version

    def _send_weights(self, version: int) -> str:
        """Returns the label under which the servers report these weights."""
        label = f"vold-{self.run_id}-{version}"
        self.tasks.run(self._call_all("/pause", params={"mode": "wait", "clear_cache": "true"}))
        self.transfer.send(version)
        # Cached keys, values and image features of the old weights must not be used with the new weights.
        for reply in self.tasks.run(self._call_all("/reset_prefix_cache")):
            if reply.get("success") is False:
                raise RunError(f"rollout.url {self.config.url}: vLLM kept keys and values of the old weights")
        self.tasks.run(self._call_all("/reset_encoder_cache"))
        self.tasks.run(self._call_all("/update_weight_version", json={"new_version": label}))
        self.tasks.run(self._call_all("/resume"))
        return label

    async def _call_all(self, route: str, **options: Any) -> list[Any]:
        return await asyncio.gather(*(server.control(route, **options) for server in self.servers))

    def generate(
        self,
        examples: Sequence[Example],
        sampling: Sampling,
        *,
        seed: int,
        first_row: int = 0,
        on_finished: OnFinished | None = None,
        on_fault: OnFault | None = None,
    ) -> list[Rollout]:
        """See Engine. Rollouts have log-probabilities even if `sampling` does not request them, if vLLM reports them.

        An example is at fault too if its prompt is too long for a server, or a server refuses it.

        Raises RunError if a server is away for longer than half a minute, or has other weights than the last ones sent;
        UsageError if the sampling parameters do not fit the server; RowError for an example at fault without
        `on_fault`.
        """
        if self.weights_label is None:
            self.sync(self.version)
        has_logprobs = self._reports_logprobs(sampling)
        prompts, bodies = self._requests(examples, sampling, on_fault)
        results: Results = queue.SimpleQueue()
        futures = self._submit(bodies, sampling.group, seed, first_row, results)
        finished: dict[int, Rollout] = {}
        refused: set[int] = set()
        replies = 0
        try:
            while replies < len(futures):
                new = []
                for row, reply in _next_results(results):
                    replies += 1
                    index = (row - first_row) // sampling.group
                    if isinstance(reply, RefusedError):
                        _report_refusal(index, examples[index], reply, on_fault)
                        refused.add(index)
                    elif isinstance(reply, BaseException):
                        raise reply
                    elif index not in refused:
                        example, prompt = examples[index], prompts[index]
                        new.append(read_reply(self.student, row, example, prompt, reply, sampling, has_logprobs))
                finished.update({rollout.row: rollout for rollout in new})
                if on_finished is not None and new:
                    on_finished(new)
        finally:
            for future in futures:
                future.cancel()
        self.tasks.run(self._check_weights())
        return [finished[row] for row in sorted(finished) if (row - first_row) // sampling.group not in refused]

    def _requests(
        self, examples: Sequence[Example], sampling: Sampling, on_fault: OnFault | None
    ) -> tuple[dict[int, tuple[int, ...]], dict[int, dict[str, Any]]]:
        """The prompt ids and the request body of each example that can be sent, by its index."""

        def requests(part: Sequence[Example]) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
            prompts = [tuple(ids) for ids in self.student.prompt_ids(part)]
            self._check_lengths(prompts, sampling)
            pairs = zip(part, prompts, strict=True)
            return [(ids, request_body(self.student, example, ids, sampling)) for example, ids in pairs]

        readable, made = for_readable(requests, examples, on_fault)
        by_index = dict(zip(readable, made or (), strict=True))
        return (
            {index: ids for index, (ids, _) in by_index.items()},
            {index: body for index, (_, body) in by_index.items()},
        )

    def _submit(
        self, bodies: Mapping[int, dict[str, Any]], group: int, seed: int, first_row: int, results: Results
    ) -> list[Future[None]]:
        """Start a request for each row; each puts its reply, or its error, into `results`.

        bodies: by the index of the example.
        """
        futures = []
        for index, body in bodies.items():
            server_index = (first_row // group + index) % len(self.servers)
            server, model = self.servers[server_index], self.infos[server_index].model
            for row in range(first_row + index * group, first_row + (index + 1) * group):
                request = {**body, "model": model, "seed": row_seed(seed, row)}
                futures.append(self.tasks.submit(_put_result(results, row, server.complete(request))))
        return futures

    def _reports_logprobs(self, sampling: Sampling) -> bool:
        """Whether the servers report log-probabilities at sampling.temperature, before top_p.

        Raises UsageError if they do not, and `sampling` requests log-probabilities; or if they report too few
        candidates.
        """
        for server, info in zip(self.servers, self.infos, strict=True):
            if info.logprobs_mode == "raw_logprobs":
                matches = sampling.temperature in (0, 1)
            else:
                matches = info.logprobs_mode == "processed_logprobs" and not sampling.leaves_out
            if not matches and sampling.logprobs:
                raise UsageError(
                    f"rollout.temperature is {sampling.temperature}, rollout.top_p {sampling.top_p}, rollout.top_k "
                    f"{sampling.top_k} and rollout.min_p {sampling.min_p}: with these, rollout.url {server.name} "
                    f"(--logprobs-mode {info.logprobs_mode}) does not report the log-probabilities that the objective "
                    "needs. Set rollout.temperature=1; or leave top_p, top_k and min_p out and start the server with "
                    "--logprobs-mode processed_logprobs"
                )
            if not matches:
                return False
            if sampling.candidates > info.max_logprobs >= 0:
                raise UsageError(
                    f"the objective needs the student's {sampling.candidates} most likely ids (objective.top_k), and "
                    f"rollout.url {server.name} gives {info.max_logprobs}: start it with --max-logprobs "
                    f"{sampling.candidates}, or lower objective.top_k"
                )
        return True

    def _check_lengths(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        limit, name = min((info.max_length, server.name) for server, info in zip(self.servers, self.infos, strict=True))
        for ids in prompts:
            if len(ids) + sampling.max_tokens > limit:
                raise PromptTooLongError(
                    f"its prompt has {len(ids)} tokens, and with rollout.max_tokens={sampling.max_tokens} that is more "
                    f"than the {limit} of rollout.url {name}: lower rollout.max_tokens, or start the server with a "
                    "larger --max-model-len"
                )

    async def _check_weights(self) -> None:
        """Raises RunError if a server has other weights than the last ones sent, as after a restart."""
        for server in self.servers:
            label = await server.weight_version()
            if label not in (None, self.weights_label):
                raise RunError(
                    f"rollout.url {server.name} generates with weights {label!r}, and was sent {self.weights_label!r}: "
                    "it was restarted, or another run uses it. Give each run its own servers, and go on with --resume"
                )


class ProcessGroup:
    """The processes of a run, each of which has an engine."""

    def __init__(self) -> None:
        distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.group: Any = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT) if distributed else None

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        if self.group is not None:
            dist.barrier(group=self.group)

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on the main process. Returns its result on all processes; if it fails, all processes raise."""
        if self.group is None:
            return work()
        result_and_message: list[Any] = [None, None]
        failure = None
        if dist.get_rank() == 0:
            try:
                result_and_message[0] = work()
            except Exception as error:
                failure, result_and_message[1] = error, f"{error}"
        dist.broadcast_object_list(result_and_message, src=0, group=self.group)
        result, message = result_and_message
        if message is not None:
            raise RunError(message) if failure is None else failure
        return result  # type: ignore[no-any-return]


async def _put_result(results: Results, row: int, reply: Any) -> None:
    try:
        results.put((row, await reply))
    except Exception as error:
        results.put((row, error))


def _next_results(results: Results) -> list[tuple[int, Reply | BaseException]]:
    """Wait for a result. Returns all results that are ready."""
    ready = [results.get()]
    while not results.empty():
        ready.append(results.get())
    return ready


def _report_refusal(index: int, example: Example, error: RefusedError, on_fault: OnFault | None) -> None:
    fault = RowFault.of(example, error, refused=True)
    if on_fault is None:
        raise RowError(fault) from error
    on_fault(index, fault)
