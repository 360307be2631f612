"""From the wire's messages to the engine's, with every limit checked before anything is computed."""

import math
import secrets
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
from vold_proto.arrays import unpack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.errors import ServiceError, invalid
from vold_service.tenants import Tenant

from vold_teacher.backends.base import Capabilities
from vold_teacher.types import GeneratePrompt, Ids, SamplingOptions, ScoreOptions, Sequence

MAX_N = 4096
MAX_STOP_IDS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask. vocab_size, max_sequence: the model's. max_top_k, max_candidates, max_sequences: the
    server's. capabilities, backend: what computes and what it can do. tenant: whose max_sequence it is, where that is
    less than the model's.
    """

    vocab_size: int
    max_sequence: int
    max_top_k: int
    max_candidates: int
    max_sequences: int
    capabilities: Capabilities
    backend: str
    tenant: str = ""

    def for_tenant(self, tenant: Tenant) -> "Limits":
        """The same, held to what the tenant may send."""
        if tenant.max_sequence is None or tenant.max_sequence >= self.max_sequence:
            return self
        return replace(self, max_sequence=tenant.max_sequence, tenant=tenant.name)

    @property
    def longest(self) -> str:
        """The limit of a sequence, in words."""
        who = f"the tenant {self.tenant!r} may send" if self.tenant else "the teacher takes"
        return f"{who} at most {self.max_sequence}"

    @property
    def top_k(self) -> int:
        """The largest top-k that may be asked for."""
        most = min(self.max_top_k, self.vocab_size)
        return most if self.capabilities.max_top_k is None else min(most, self.capabilities.max_top_k)

    @property
    def candidates(self) -> int:
        """The most candidates that may be asked for at one position."""
        if not self.capabilities.candidates:
            return 0
        most = self.capabilities.max_candidates
        return self.max_candidates if most is None else min(self.max_candidates, most)


def check_count(field: str, count: int, limits: Limits) -> None:
    """Raise INVALID_ARGUMENT where a request has no items in a list, or too many."""
    if not count:
        raise invalid(field, f"{field} is empty: send at least one")
    if count > limits.max_sequences:
        raise invalid(
            field,
            f"{field} has {count} entries: this server takes at most {limits.max_sequences} in a request; send "
            "several requests",
        )


def tokens_sent(request: pb.ScoreRequest, sequences: Mapping[int, Sequence]) -> int:
    """Tokens that a request is charged for: its completions, and each prompt once, as they were sent."""
    prompts = {request.completions[index].prompt: len(sequence.prompt) for index, sequence in sequences.items()}
    return sum(prompts.values()) + sum(len(sequence.completion) for sequence in sequences.values())


def token_ids(data: bytes, field: str, limits: Limits, most: int | None = None) -> Ids:
    """Packed ids, each in the vocabulary. Raises INVALID_ARGUMENT that names the first that is not.

    most: how many there may be; by default as many as a sequence has. Looked at before anything is unpacked.
    """
    if most is None and len(data) > 4 * limits.max_sequence:
        raise invalid(field, f"{field} has {len(data) // 4} tokens: {limits.longest}; shorten it")
    if most is not None and len(data) > 4 * most:
        raise invalid(field, f"{field} has {len(data) // 4} ids: there is room for {most}")
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


def score_options(options: pb.ScoreOptions, limits: Limits) -> ScoreOptions:
    temperature = options.temperature if options.HasField("temperature") else 1.0
    if not (temperature > 0 and math.isfinite(temperature)):
        raise invalid(
            "options.temperature", f"options.temperature is {temperature:g}: scoring needs a finite value above 0"
        )
    can = limits.capabilities
    if temperature != 1 and not can.temperature:
        raise invalid(
            "options.temperature",
            f"options.temperature is {temperature:g}: the {limits.backend} backend scores at 1 alone; leave it out",
        )
    for field, asked, able in (
        ("entropy", options.entropy, can.entropy),
        ("hidden_states", options.hidden_states, can.hidden_states),
        ("ranks", options.ranks, can.ranks),
    ):
        if asked and not able:
            raise invalid(f"options.{field}", f"options.{field} is true: the {limits.backend} backend gives none")
    most = limits.top_k
    if options.top_k > most:
        raise invalid("options.top_k", f"options.top_k is {options.top_k}: this server gives at most {most}")
    if options.dtype not in pb.DType.values():
        raise invalid("options.dtype", f"options.dtype is {options.dtype}: use F32 (0), F16 (1) or BF16 (2)")
    return ScoreOptions(temperature, options.top_k, options.entropy, options.hidden_states, options.ranks)


def score_sequences(
    request: pb.ScoreRequest, options: ScoreOptions, limits: Limits
) -> tuple[dict[int, Sequence], dict[int, ServiceError]]:
    """The request's good completions and the faults of the others, each by index. A fault loses its item alone."""
    prompts: list[Ids | ServiceError] = []
    for index, prompt in enumerate(request.prompts):
        field = f"prompts[{index}].ids"
        try:
            prompts.append(token_ids(prompt.ids, field, limits))
        except ServiceError as error:
            prompts.append(error)
    sequences: dict[int, Sequence] = {}
    faults: dict[int, ServiceError] = {}
    seen: dict[str, int] = {}
    for index, completion in enumerate(request.completions):
        try:
            if completion.id and completion.id in seen:
                raise invalid(
                    f"completions[{index}].id",
                    f"completions[{index}].id is {completion.id!r}, which completions[{seen[completion.id]}] has too: "
                    "give each its own, or none",
                )
            seen[completion.id] = index
            sequences[index] = _sequence(completion, index, prompts, options, limits)
        except ServiceError as error:
            faults[index] = error
    return sequences, faults


def _sequence(
    completion: pb.Completion,
    index: int,
    prompts: list[Ids | ServiceError],
    options: ScoreOptions,
    limits: Limits,
) -> Sequence:
    path = f"completions[{index}]"
    if completion.prompt >= len(prompts):
        raise invalid(
            f"{path}.prompt",
            f"{path}.prompt is {completion.prompt}, but the request has {len(prompts)} prompts, counted from 0",
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
    ids = token_ids(completion.ids, f"{path}.ids", limits)
    if not len(ids):
        raise invalid(f"{path}.ids", f"{path}.ids is empty: send at least one completion token, or leave the item out")
    length = len(prompt) + len(ids)
    if length > limits.max_sequence:
        raise invalid(
            f"{path}.ids",
            f"{path} has {len(prompt)} prompt and {len(ids)} completion tokens, {length} together: {limits.longest}; "
            "shorten it",
        )
    candidates, counts = _candidates(completion, path, len(ids), limits)
    return Sequence(prompt, ids, options, candidates, counts)


def _candidates(completion: pb.Completion, path: str, positions: int, limits: Limits) -> tuple[Ids | None, Ids | None]:
    """Candidate ids [M] and how many each position has [T]; (None, None) where none are asked for."""
    wanted = completion.candidates
    field = f"{path}.candidates"
    if not (wanted.ids or wanted.per_position or wanted.counts):
        return None, None
    if not limits.capabilities.candidates:
        raise invalid(field, f"{field} is set: the {limits.backend} backend scores no candidates; ask for a top_k")
    if wanted.per_position and wanted.counts:
        raise invalid(field, f"{field} has both per_position and counts: give one of them")
    if wanted.counts:
        if len(wanted.counts) != 4 * positions:
            raise invalid(
                f"{field}.counts",
                f"{field}.counts has {len(wanted.counts) / 4:g} entries for {positions} completion positions: give one "
                "for each, of 4 bytes",
            )
        counts = unpack_ids(wanted.counts)
    else:
        counts = np.full(positions, min(wanted.per_position, np.iinfo(np.int32).max), np.int32)
    if counts.min() < 0 or counts.max() > limits.candidates:
        worst = int(counts.min() if counts.min() < 0 else counts.max())
        raise invalid(
            field, f"{field} asks for {worst} candidates at a position: between 0 and {limits.candidates} are given"
        )
    expected = int(counts.sum(dtype=np.int64))
    ids = token_ids(wanted.ids, f"{field}.ids", limits, most=positions * limits.max_candidates)
    if len(ids) != expected:
        raise invalid(
            f"{field}.ids",
            f"{field}.ids has {len(ids)} ids, but {positions} positions ask for {expected} in all: "
            "set per_position, or counts where positions differ",
        )
    return ids, counts


def sampling_options(options: pb.GenerateOptions, limits: Limits, eos_ids: Seq[int]) -> SamplingOptions:
    temperature = options.temperature if options.HasField("temperature") else 1.0
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise invalid(
            "options.temperature", f"options.temperature is {temperature:g}: give 0 for greedy, or a finite value above"
        )
    top_p = options.top_p if options.HasField("top_p") else 1.0
    if not 0 < top_p <= 1:
        raise invalid("options.top_p", f"options.top_p is {top_p:g}: give a value above 0 and at most 1")
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
    if options.HasField("seed") and temperature and not limits.capabilities.seed:
        raise invalid(
            "options.seed",
            f"options.seed is {options.seed}: the {limits.backend} backend draws without regard to it; leave it out",
        )
    return SamplingOptions(
        max_tokens=options.max_tokens,
        n=options.n or 1,
        temperature=temperature,
        top_p=top_p,
        top_k=min(options.top_k, limits.vocab_size),
        seed=options.seed if options.HasField("seed") else secrets.randbits(64),
        stop_ids=frozenset(options.stop_ids) | frozenset(eos_ids),
        stream_tokens=options.stream_tokens,
    )


def generate_prompt(ids: Ids, index: int, options: SamplingOptions, limits: Limits) -> GeneratePrompt:
    """A prompt with the room that the maximum sequence leaves for its completions."""
    field = f"prompts[{index}].ids"
    if not len(ids):
        raise invalid(field, f"{field} is empty: send at least one token, or messages")
    room = limits.max_sequence - len(ids)
    if room < 1:
        raise invalid(
            field,
            f"{field} has {len(ids)} tokens, which leaves no room for a completion: {limits.longest} together",
        )
    return GeneratePrompt(ids, index, min(options.max_tokens, room))
