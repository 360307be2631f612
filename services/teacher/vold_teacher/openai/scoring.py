"""Log-probabilities of given tokens, from Teacher.score, and the three JSON shapes that carry them.

Shape letters: T positions, K top-k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from vold_proto.arrays import pack_ids, unpack_floats, unpack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call
from vold_service.errors import invalid

from vold_teacher.openai.errors import raise_failed
from vold_teacher.openai.prompts import Prompt
from vold_teacher.openai.sharing import shared_prefixes
from vold_teacher.openai.text import Detokenizer
from vold_teacher.service import Loaded, Teacher
from vold_teacher.tokenizer import Tokenizer
from vold_teacher.types import Floats, Ids

LEAST = -9999.0
"""In place of minus infinity, which JSON lacks; the value that OpenAI and vLLM use."""


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """What the model says of the tokens `ids` [T]. logprobs: float32 [T]. top_ids, top_logprobs: [T, K], most likely
    first. ranks: int32 [T], or None.
    """

    ids: Ids
    logprobs: Floats
    top_ids: Ids
    top_logprobs: Floats
    ranks: Ids | None = None

    @classmethod
    def sampled(cls, ids: Ids, logprobs: Floats) -> "Positions":
        """Of the sampled tokens alone."""
        return cls(ids, logprobs, np.empty((len(ids), 0), np.int32), np.empty((len(ids), 0), np.float32))

    @classmethod
    def joined(cls, parts: Sequence["Positions"], top_k: int, *, ranks: bool) -> "Positions":
        """One after another; there may be none."""
        nothing = np.empty(0, np.int32)
        empty = cls(
            nothing, nothing.astype(np.float32), np.empty((0, top_k), np.int32), np.empty((0, top_k), np.float32)
        )
        return cls(
            np.concatenate([empty.ids, *(part.ids for part in parts)]),
            np.concatenate([empty.logprobs, *(part.logprobs for part in parts)]),
            np.concatenate([empty.top_ids, *(part.top_ids for part in parts)]),
            np.concatenate([empty.top_logprobs, *(part.top_logprobs for part in parts)]),
            np.concatenate([nothing, *(part.ranks for part in parts if part.ranks is not None)]) if ranks else None,
        )

    def __getitem__(self, part: slice) -> "Positions":
        ranks = None if self.ranks is None else self.ranks[part]
        return Positions(self.ids[part], self.logprobs[part], self.top_ids[part], self.top_logprobs[part], ranks)


async def score(
    teacher: Teacher,
    pairs: Sequence[tuple[Ids, Ids]],
    *,
    model: str,
    top_k: int,
    ranks: bool = False,
    priority: int,
    call: Call,
) -> list[Positions]:
    """Of each pair (prompt, completion), the completion's positions. One that fails fails the request."""
    if not pairs:
        return []
    request = pb.ScoreRequest(
        request_id=call.request_id,
        model=model,
        run_id=call.run_id,
        priority=priority,
        options=pb.ScoreOptions(top_k=top_k, ranks=ranks),
    )
    places: dict[bytes, int] = {}
    for prompt, completion in pairs:
        packed = pack_ids(prompt)
        if packed not in places:
            places[packed] = len(places)
            request.prompts.add(ids=packed)
        request.completions.add(prompt=places[packed], ids=pack_ids(completion))
    reply = await teacher.score(request, call)
    positions = []
    for (_, completion), found in zip(pairs, reply.scores, strict=True):
        if found.HasField("status"):
            raise_failed(found.status)
        positions.append(
            Positions(
                completion,
                unpack_floats(found.logprobs),
                unpack_ids(found.top_ids).reshape(len(completion), top_k),
                unpack_floats(found.top_logprobs).reshape(len(completion), top_k),
                unpack_ids(found.ranks) if ranks else None,
            )
        )
    return positions


async def score_prompts(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    loaded: Loaded,
    *,
    model: str,
    top_k: int,
    ranks: bool,
    following: bool,
    priority: int,
    call: Call,
) -> tuple[list[Positions], list[Positions]]:
    """Each prompt's positions from its second token on; the first has nothing before it to be scored after.

    following: also the position after each prompt's last token, whose most likely token is what greedy decoding
    takes: top_k must be 1 or more then. Its own "token" stands for none. What several prompts begin with is computed
    once where the backend can.
    """
    sequences = [np.append(prompt.ids, prompt.ids[: int(following)]) for prompt in prompts]
    pairs: list[tuple[Ids, Ids]] = []
    heads: dict[bytes, list[int]] = {}
    parts: list[list[int]] = []  # of each prompt, which pairs have its positions, in order

    def add(before: Ids, scored: Ids) -> list[int]:
        if not len(scored):
            return []
        pairs.append((before, scored))
        return [len(pairs) - 1]

    shares = loaded.engine.backend.info.shares_prompts
    cuts = shared_prefixes([prompt.ids for prompt in prompts]) if shares else [1] * len(prompts)
    for ids, cut in zip(sequences, cuts, strict=True):
        head = ids[:cut]
        if head.tobytes() not in heads:
            heads[head.tobytes()] = add(head[:1], head[1:])
        parts.append(heads[head.tobytes()] + add(head, ids[cut:]))
    scored = await score(teacher, pairs, model=model, top_k=top_k, ranks=ranks, priority=priority, call=call)
    found = [Positions.joined([scored[index] for index in part], top_k, ranks=ranks) for part in parts]
    own = [len(prompt.ids) - 1 for prompt in prompts]
    return (
        [positions[:end] for positions, end in zip(found, own, strict=True)],
        [positions[end:] for positions, end in zip(found, own, strict=True)],
    )


MAX_IDS = 1 << 23
"""Ids with log-probabilities that one reply may show: each takes about 75 bytes as JSON."""


def check_ids(count: int, field: str, what: str) -> None:
    """Raise INVALID_ARGUMENT where a reply would show too many; what: how they come together."""
    if count > MAX_IDS:
        raise invalid(
            field,
            f"{field}: {what} make {count} ids, and one reply shows at most {MAX_IDS}: ask for fewer of them, or send "
            "several requests",
        )


def top_k_of(asked: int, field: str, model: Loaded) -> int:
    """A top-k within the server's limit; -1 asks for the whole vocabulary."""
    most = model.limits.top_k
    wanted = model.limits.vocab_size if asked == -1 else asked
    if wanted > most:
        raise invalid(field, f"{field} is {asked}: this server gives at most {most}; ask for less")
    return wanted


def prompt_logprobs(positions: Positions, k: int, tokenizer: Tokenizer) -> list[dict[str, Any] | None]:
    """vLLM's shape: null for the first token, then a map from id to {logprob, rank, decoded_token} that holds the k
    most likely ids and the prompt's own, which stands first.
    """
    assert positions.ranks is not None
    entries: list[dict[str, Any] | None] = [None]
    for own, logprob, rank, ids, logprobs in zip(
        positions.ids.tolist(),
        positions.logprobs.tolist(),
        positions.ranks.tolist(),
        positions.top_ids[:, :k].tolist(),
        positions.top_logprobs[:, :k].tolist(),
        strict=True,
    ):
        entry = {str(own): _entry(own, logprob, rank, tokenizer)}
        for place, (index, value) in enumerate(zip(ids, logprobs, strict=True), 1):
            entry[str(index)] = _entry(index, value, place, tokenizer)
        entries.append(entry)
    return entries


def _entry(index: int, logprob: float, rank: int, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"logprob": max(logprob, LEAST), "rank": rank, "decoded_token": tokenizer.token(index)}


def token_name(index: int, tokenizer: Tokenizer, as_id: bool) -> str:
    return f"token_id:{index}" if as_id else tokenizer.token(index)


class LegacyLogprobs:
    """The `logprobs` of /v1/completions: four lists, position by position.

    k: how many of the most likely tokens each map in top_logprobs holds besides the token itself. Where tokens read
    alike, a map keeps the likelier.
    """

    def __init__(self, k: int, tokenizer: Tokenizer, *, as_ids: bool) -> None:
        self._k = k
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self.json: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}

    def first(self, index: int) -> None:
        """The prompt's first token, which has no log-probability."""
        self._add(index, None, None)

    def extend(self, positions: Positions) -> None:
        for index, logprob, ids, logprobs in zip(
            positions.ids.tolist(),
            positions.logprobs.tolist(),
            positions.top_ids[:, : self._k].tolist(),
            positions.top_logprobs[:, : self._k].tolist(),
            strict=True,
        ):
            top = {self._name(index): max(logprob, LEAST)}
            for other, value in zip(ids, logprobs, strict=True):
                name = self._name(other)
                top[name] = max(value, LEAST, top.get(name, LEAST))
            self._add(index, max(logprob, LEAST), top)

    def place(self, ids: Ids, *, special: bool) -> None:
        """Note where in the text each of `ids` begins. special: whether special tokens are part of the text."""
        detokenizer = Detokenizer(self._tokenizer, special=special)
        offset = 0
        for index in ids.tolist():
            self.json["text_offset"].append(offset)
            offset += len(detokenizer.push(index))

    def _name(self, index: int) -> str:
        return token_name(index, self._tokenizer, self._as_ids)

    def _add(self, index: int, logprob: float | None, top: dict[str, float] | None) -> None:
        self.json["tokens"].append(self._name(index))
        self.json["token_logprobs"].append(logprob)
        self.json["top_logprobs"].append(top)


def chat_logprobs(positions: Positions, k: int, tokenizer: Tokenizer, *, as_ids: bool) -> dict[str, Any]:
    """The `logprobs` of /v1/chat/completions: an entry a token, with the k most likely ones."""

    def entry(index: int, logprob: float) -> dict[str, Any]:
        name = token_name(index, tokenizer, as_ids)
        return {"token": name, "logprob": max(logprob, LEAST), "bytes": list(name.encode())}

    content = [
        {
            **entry(index, logprob),
            "top_logprobs": [entry(other, value) for other, value in zip(ids, logprobs, strict=True)],
        }
        for index, logprob, ids, logprobs in zip(
            positions.ids.tolist(),
            positions.logprobs.tolist(),
            positions.top_ids[:, :k].tolist(),
            positions.top_logprobs[:, :k].tolist(),
            strict=True,
        )
    ]
    return {"content": content, "refusal": None}
