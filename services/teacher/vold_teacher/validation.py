"""Turns wire messages into the engine's types, and checks every limit before anything is computed."""

import math
import secrets
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from vold_proto.arrays import unpack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.errors import ServiceError, check_name, invalid, shown
from vold_service.tenants import Tenant

from vold_teacher.backends.base import Capabilities
from vold_teacher.reply import MAX_REPLY_BYTES
from vold_teacher.types import GeneratePrompt, Ids, SamplingOptions, ScoreOptions, Sequence

MAX_N = 4096
MAX_STOP_IDS = 64
MIN_SCORE_TEMPERATURE = float(np.float32(1e-4))  # as the wire rounds it
"""Logits that are divided by less have log-probabilities that float32 cannot hold, or that mean nothing."""
MAX_STOP_TEXTS = 64
MAX_STOP_CHARACTERS = 1000
MAX_VARIABLES_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a request. vocab_size: of the model. max_top_k, max_candidates, max_sequences: of the server.
    max_sequence: of the model, or of `tenant` if that is less; tenant is "" otherwise. capabilities: of the backend.
    max_reply_bytes: of one message with scores.
    """

    vocab_size: int
    max_sequence: int
    max_top_k: int
    max_candidates: int
    max_sequences: int
    capabilities: Capabilities
    backend: str
    tenant: str = ""
    max_reply_bytes: int = MAX_REPLY_BYTES

    def for_tenant(self, tenant: Tenant) -> "Limits":
        """These limits with the tenant's max_sequence, if it is less."""
        if tenant.max_sequence is None or tenant.max_sequence >= self.max_sequence:
            return self
        return replace(self, max_sequence=tenant.max_sequence, tenant=tenant.name)

    @property
    def sequence_limit(self) -> str:
        """The limit of a sequence, in words."""
        who = f"the tenant {self.tenant!r} may send" if self.tenant else "the teacher takes"
        return f"{who} at most {self.max_sequence}"

    @property
    def allowed_top_k(self) -> int:
        """The largest top-k that a request may set: the least of the server's, the model's and the backend's limit."""
        limit = min(self.max_top_k, self.vocab_size)
        return limit if self.capabilities.max_top_k is None else min(limit, self.capabilities.max_top_k)

    @property
    def allowed_candidates(self) -> int:
        """The most candidates that a request may send for one position; 0 if the backend scores none."""
        if not self.capabilities.candidates:
            return 0
        limit = self.capabilities.max_candidates
        return self.max_candidates if limit is None else min(self.max_candidates, limit)


def check_count(field: str, count: int, limits: Limits) -> None:
    """Raise INVALID_ARGUMENT if a list of a request is empty or too long."""
    if not count:
        raise invalid(field, f"{field} is empty: send at least one")
    if count > limits.max_sequences:
        raise invalid(
            field,
            f"{field} has {count} entries: this server takes at most {limits.max_sequences} in a request; send "
            "several requests",
        )


def check_names(request: pb.ScoreRequest | pb.GenerateRequest) -> None:
    """Raise INVALID_ARGUMENT if an id of an entry of a request is too long. The entries must be counted before."""
    if isinstance(request, pb.ScoreRequest):
        for index, completion in enumerate(request.completions):
            check_name(f"completions[{index}].id", completion.id)
    else:
        for index, prompt in enumerate(request.prompts):
            check_name(f"prompts[{index}].id", prompt.id)


def count_sent_tokens(request: pb.ScoreRequest, sequences: Mapping[int, Sequence]) -> int:
    """Tokens that a request is charged for: its valid completions, and each of their prompts once."""
    prompts = {request.completions[index].prompt: len(sequence.prompt) for index, sequence in sequences.items()}
    return sum(prompts.values()) + sum(len(sequence.completion) for sequence in sequences.values())


def read_token_ids(data: bytes, field: str, limits: Limits, max_ids: int | None = None) -> Ids:
    """Unpack token ids. Raises INVALID_ARGUMENT with the first id outside the vocabulary.

    max_ids: the most ids allowed; by default as many as a sequence may have. Checked before the ids are unpacked.
    """
    if max_ids is None and len(data) > 4 * limits.max_sequence:
        raise invalid(field, f"{field} has {len(data) // 4} tokens: {limits.sequence_limit}; shorten it")
    if max_ids is not None and len(data) > 4 * max_ids:
        raise invalid(field, f"{field} has {len(data) // 4} ids: there is room for {max_ids}")
    vocab_size = limits.vocab_size
    try:
        ids = unpack_ids(data)
    except ValueError as error:
        raise invalid(field, f"{field}: {error}") from error
    outside = (ids < 0) | (ids >= vocab_size)
    if outside.any():
        position = int(outside.argmax())
        raise invalid(
            field,
            f"{field}[{position}] is {int(ids[position])}: ids must be in 0 to {vocab_size - 1}; "
            "compare the tokenizers, GetTokenizer sends the teacher's",
        )
    return ids


def read_score_options(options: pb.ScoreOptions, limits: Limits) -> ScoreOptions:
    temperature = options.temperature if options.HasField("temperature") else 1.0
    if not (temperature >= MIN_SCORE_TEMPERATURE and math.isfinite(temperature)):
        raise invalid(
            "options.temperature",
            f"options.temperature is {temperature:g}: scoring needs a finite value of at least "
            f"{MIN_SCORE_TEMPERATURE:g}",
        )
    capabilities = limits.capabilities
    if temperature != 1 and not capabilities.temperature:
        raise invalid(
            "options.temperature",
            f"options.temperature is {temperature:g}: the {limits.backend} backend scores at 1 alone; leave it out",
        )
    for field, requested, supported in (
        ("entropy", options.entropy, capabilities.entropy),
        ("hidden_states", options.hidden_states, capabilities.hidden_states),
        ("ranks", options.ranks, capabilities.ranks),
    ):
        if requested and not supported:
            raise invalid(f"options.{field}", f"options.{field} is true: the {limits.backend} backend gives none")
    max_top_k = limits.allowed_top_k
    if options.top_k > max_top_k:
        raise invalid("options.top_k", f"options.top_k is {options.top_k}: this server gives at most {max_top_k}")
    if options.dtype not in pb.DType.values():
        raise invalid("options.dtype", f"options.dtype is {options.dtype}: use F32 (0), F16 (1) or BF16 (2)")
    return ScoreOptions(temperature, options.top_k, options.entropy, options.hidden_states, options.ranks)


def read_sequences(
    request: pb.ScoreRequest, options: ScoreOptions, limits: Limits
) -> tuple[dict[int, Sequence], dict[int, ServiceError]]:
    """The valid completions, and the errors of the invalid ones, by index."""
    sequences: dict[int, Sequence] = {}
    errors: dict[int, ServiceError] = {}
    for index, read in each_sequence(request, options, limits):
        if isinstance(read, ServiceError):
            errors[index] = read
        else:
            sequences[index] = read
    return sequences, errors


def each_sequence(
    request: pb.ScoreRequest, options: ScoreOptions, limits: Limits, owner: str = ""
) -> Iterator[tuple[int, Sequence | ServiceError]]:
    """`read_sequences` one by one, so that the event loop can go on between two. owner: of the sequences."""
    prompts: dict[int, Ids | ServiceError] = {}
    seen: dict[str, int] = {}
    for index, completion in enumerate(request.completions):
        number = completion.prompt
        if number not in prompts and number < len(request.prompts):
            try:
                prompts[number] = read_token_ids(request.prompts[number].ids, f"prompts[{number}].ids", limits)
            except ServiceError as error:
                prompts[number] = error
        try:
            if completion.id and completion.id in seen:
                raise invalid(
                    f"completions[{index}].id",
                    f"completions[{index}].id is {shown(completion.id)}, which completions[{seen[completion.id]}] has "
                    "too: give each its own, or none",
                )
            seen[completion.id] = index
            read: Sequence | ServiceError = _sequence(
                completion, index, prompts, len(request.prompts), options, limits, owner
            )
        except ServiceError as error:
            read = error
        yield index, read


def _sequence(
    completion: pb.Completion,
    index: int,
    prompts: Mapping[int, Ids | ServiceError],
    count: int,
    options: ScoreOptions,
    limits: Limits,
    owner: str,
) -> Sequence:
    path = f"completions[{index}]"
    if completion.prompt >= count:
        raise invalid(
            f"{path}.prompt",
            f"{path}.prompt is {completion.prompt}, but the request has {count} prompts, counted from 0",
        )
    prompt = prompts[completion.prompt]
    if isinstance(prompt, ServiceError):
        raise prompt
    if not len(prompt):
        raise invalid(
            f"prompts[{completion.prompt}].ids",
            f"prompts[{completion.prompt}].ids is empty: a first completion token needs at least one token before it; "
            "send the BOS id where there is no prompt",
        )
    ids = read_token_ids(completion.ids, f"{path}.ids", limits)
    if not len(ids):
        raise invalid(f"{path}.ids", f"{path}.ids is empty: send at least one completion token, or leave the item out")
    length = len(prompt) + len(ids)
    if length > limits.max_sequence:
        raise invalid(
            f"{path}.ids",
            f"{path} has {len(prompt)} prompt and {len(ids)} completion tokens, {length} together: "
            f"{limits.sequence_limit}; "
            "shorten it",
        )
    candidates, counts = _candidates(completion, path, len(ids), limits)
    return Sequence(prompt, ids, options, candidates, counts, owner)


def _candidates(completion: pb.Completion, path: str, positions: int, limits: Limits) -> tuple[Ids | None, Ids | None]:
    """Candidate ids [M] and their number at each position [T]; (None, None) if the completion has no candidates."""
    candidates = completion.candidates
    field = f"{path}.candidates"
    if not (candidates.ids or candidates.per_position or candidates.counts):
        return None, None
    if not limits.capabilities.candidates:
        raise invalid(field, f"{field} is set: the {limits.backend} backend scores no candidates; ask for a top_k")
    if candidates.per_position and candidates.counts:
        raise invalid(field, f"{field} has both per_position and counts: give one of them")
    if candidates.counts:
        if len(candidates.counts) != 4 * positions:
            raise invalid(
                f"{field}.counts",
                f"{field}.counts has {len(candidates.counts) / 4:g} entries for {positions} completion positions: "
                "give one for each, of 4 bytes",
            )
        counts = unpack_ids(candidates.counts)
    else:
        counts = np.full(positions, min(candidates.per_position, np.iinfo(np.int32).max), np.int32)
    if counts.min() < 0 or counts.max() > limits.allowed_candidates:
        worst = int(counts.min() if counts.min() < 0 else counts.max())
        raise invalid(
            field,
            f"{field} asks for {worst} candidates at a position: between 0 and {limits.allowed_candidates} are given",
        )
    expected = int(counts.sum(dtype=np.int64))
    ids = read_token_ids(candidates.ids, f"{field}.ids", limits, max_ids=positions * limits.max_candidates)
    if len(ids) != expected:
        raise invalid(
            f"{field}.ids",
            f"{field}.ids has {len(ids)} ids, but {positions} positions ask for {expected} in all: "
            "set per_position, or counts where positions differ",
        )
    return ids, counts


def check_reply_bytes(size: int, field: str, remedy: str, limits: Limits) -> None:
    """Raise INVALID_ARGUMENT if a reply could have more than `max_reply_bytes`."""
    if size > limits.max_reply_bytes:
        raise invalid(
            field,
            f"the reply to {field} may have {size} bytes, and this server sends at most {limits.max_reply_bytes} at a "
            f"time: {remedy}",
        )


def read_sampling_options(options: pb.GenerateOptions, limits: Limits, eos_ids: Seq[int]) -> SamplingOptions:
    temperature = options.temperature if options.HasField("temperature") else 1.0
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise invalid(
            "options.temperature", f"options.temperature is {temperature:g}: give 0 for greedy, or a finite value above"
        )
    top_p = options.top_p if options.HasField("top_p") else 1.0
    if not 0 < top_p <= 1:
        raise invalid("options.top_p", f"options.top_p is {top_p:g}: give a value above 0 and at most 1")
    min_p = options.min_p if options.HasField("min_p") else 0.0
    if not 0 <= min_p <= 1:
        raise invalid("options.min_p", f"options.min_p is {min_p:g}: give a value from 0 to 1")
    if options.n > MAX_N:
        raise invalid("options.n", f"options.n is {options.n}: at most {MAX_N} completions a prompt; send it again")
    if not options.max_tokens:
        raise invalid("options.max_tokens", "options.max_tokens is 0: say how many tokens a completion may have")
    if len(options.stop_ids) > MAX_STOP_IDS:
        raise invalid(
            "options.stop_ids", f"options.stop_ids has {len(options.stop_ids)} ids: at most {MAX_STOP_IDS} are taken"
        )
    for index, stop in enumerate(options.stop_ids):
        if not 0 <= stop < limits.vocab_size:
            field = f"options.stop_ids[{index}]"
            raise invalid(field, f"{field} is {stop}: ids must be in 0 to {limits.vocab_size - 1}")
    if options.HasField("seed") and temperature:
        _check_seed("options.seed", options.seed, limits)
    return SamplingOptions(
        max_tokens=options.max_tokens,
        n=options.n or 1,
        temperature=temperature,
        top_p=top_p,
        top_k=min(options.top_k, limits.vocab_size),
        min_p=min_p,
        seed=options.seed if options.HasField("seed") else secrets.randbits(64),
        stop_ids=frozenset(options.stop_ids) | frozenset(eos_ids),
        stream_tokens=options.stream_tokens,
    )


def _check_seed(field: str, seed: int, limits: Limits) -> None:
    if not limits.capabilities.seed:
        raise invalid(
            field, f"{field} is {seed}: the {limits.backend} backend samples without regard to it; leave it out"
        )


def read_stop_texts(options: pb.GenerateOptions) -> tuple[str, ...]:
    if len(options.stop) > MAX_STOP_TEXTS:
        raise invalid("options.stop", f"options.stop has {len(options.stop)} texts: at most {MAX_STOP_TEXTS} are taken")
    for index, text in enumerate(options.stop):
        if not 0 < len(text) <= MAX_STOP_CHARACTERS:
            field = f"options.stop[{index}]"
            raise invalid(field, f"{field} has {len(text)} characters: give 1 to {MAX_STOP_CHARACTERS}")
    return tuple(options.stop)


def read_template_variables(options: pb.GenerateOptions, prompts: Seq[pb.GeneratePrompt]) -> dict[str, Any]:
    """chat_template_kwargs as Python values; whole numbers as int."""
    field = "options.chat_template_kwargs"
    size = options.chat_template_kwargs.ByteSize()
    if size > MAX_VARIABLES_BYTES:
        raise invalid(field, f"{field} has {size} bytes: at most {MAX_VARIABLES_BYTES} are taken")
    try:
        values = MessageToDict(options.chat_template_kwargs)
    except (SerializeToJsonError, ValueError, RecursionError) as error:
        raise invalid(field, f"{field} cannot be read: {error}; send finite numbers, and fewer levels") from error
    if values and not any(prompt.messages for prompt in prompts):
        raise invalid(field, f"{field} is set, and no prompt has messages to render: leave it out")
    return {name: _with_integers(value) for name, value in values.items()}


def _with_integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_integers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def make_prompt(
    ids: Ids, seed: int | None, index: int, options: SamplingOptions, limits: Limits, owner: str = ""
) -> GeneratePrompt:
    """A prompt whose max_tokens is cut to the tokens that max_sequence leaves for its completions. seed: its own."""
    field = f"prompts[{index}].ids"
    if not len(ids):
        raise invalid(field, f"{field} is empty: send at least one token, or messages")
    room = limits.max_sequence - len(ids)
    if room < 1:
        raise invalid(
            field,
            f"{field} has {len(ids)} tokens, which leaves no room for a completion: {limits.sequence_limit} together",
        )
    if seed is not None and options.temperature:
        _check_seed(f"prompts[{index}].seed", seed, limits)
    return GeneratePrompt(ids, index, min(options.max_tokens, room), seed, owner)
