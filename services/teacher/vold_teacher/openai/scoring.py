"""Log-probabilities of prompt and completion tokens, from Teacher.score, and the three JSON formats for them.

Shape letters: T positions, K top-k.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from vold_proto.arrays import pack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call
from vold_service.errors import ServiceError, invalid
from vold_service.turns import Turn

from vold_teacher.detokenizer import Detokenizer
from vold_teacher.models import LoadedModel
from vold_teacher.openai.prompts import Prompt
from vold_teacher.openai.sharing import shared_prefix_lengths
from vold_teacher.service import Teacher
from vold_teacher.tokenizer import Tokenizer
from vold_teacher.types import Floats, Ids

MIN_LOGPROB = -9999.0
"""The value for minus infinity, which JSON lacks, as in OpenAI's and vLLM's replies."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """Scores of the tokens `ids` [T]. logprobs: float32 [T]. top_ids, top_logprobs: [T, K], most likely first.
    ranks: int32 [T], or None.
    """

    ids: Ids
    logprobs: Floats
    top_ids: Ids
    top_logprobs: Floats
    ranks: Ids | None = None

    @classmethod
    def without_top_k(cls, ids: Ids, logprobs: Floats) -> "TokenScores":
        """Scores without a top-k."""
        return cls(ids, logprobs, np.empty((len(ids), 0), np.int32), np.empty((len(ids), 0), np.float32))

    @classmethod
    def concatenate(cls, parts: Sequence["TokenScores"], top_k: int, *, ranks: bool) -> "TokenScores":
        """The parts one after another; `parts` may be empty."""
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

    def __getitem__(self, part: slice) -> "TokenScores":
        ranks = None if self.ranks is None else self.ranks[part]
        return TokenScores(self.ids[part], self.logprobs[part], self.top_ids[part], self.top_logprobs[part], ranks)


@dataclass(frozen=True, slots=True, eq=False)
class JoinedScores:
    """Scores one after another, for another process: thousands of small arrays take long to pickle."""

    scores: TokenScores
    lengths: list[int]

    @classmethod
    def of(cls, parts: Sequence[TokenScores]) -> "JoinedScores":
        """parts: of the same top-k."""
        top_k = parts[0].top_ids.shape[1] if parts else 0
        ranks = bool(parts) and parts[0].ranks is not None
        return cls(TokenScores.concatenate(parts, top_k, ranks=ranks), [len(part.ids) for part in parts])

    def split(self) -> list[TokenScores]:
        ends = list(itertools.accumulate(self.lengths))
        return [self.scores[end - length : end] for end, length in zip(ends, self.lengths, strict=True)]


async def score_completions(
    teacher: Teacher,
    pairs: Sequence[tuple[Ids, Ids]],
    *,
    model: str,
    top_k: int,
    ranks: bool = False,
    priority: int,
    call: Call,
) -> list[TokenScores]:
    """The scores of each completion in `pairs` (prompt, completion). A completion that fails fails the request."""
    if not pairs:
        return []
    request = pb.ScoreRequest(
        request_id=call.request_id,
        model=model,
        run_id=call.run_id,
        priority=priority,
        options=pb.ScoreOptions(top_k=top_k, ranks=ranks),
    )
    prompt_indices: dict[bytes, int] = {}
    turn = Turn()
    for prompt, completion in pairs:
        await turn.pause()
        packed = pack_ids(prompt)
        if packed not in prompt_indices:
            prompt_indices[packed] = len(prompt_indices)
            request.prompts.add(ids=packed)
        request.completions.add(prompt=prompt_indices[packed], ids=pack_ids(completion))
    answer = await teacher.score(request, call)
    scores = []
    turn = Turn()
    for (_, completion), score in zip(pairs, answer.scores, strict=True):
        await turn.pause()
        if isinstance(score, ServiceError):
            raise score
        none = TokenScores.without_top_k(completion, score.logprobs)
        scores.append(
            TokenScores(
                completion,
                score.logprobs,
                none.top_ids if score.top_ids is None else score.top_ids,
                none.top_logprobs if score.top_logprobs is None else score.top_logprobs,
                score.ranks,
            )
        )
    return scores


async def score_prompts(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    loaded: LoadedModel,
    *,
    model: str,
    top_k: int,
    ranks: bool,
    next_token: bool,
    priority: int,
    call: Call,
) -> tuple[list[TokenScores], list[TokenScores]]:
    """The scores of each prompt from its second token on: the first token has no score.

    next_token: also the scores of the position after each prompt, whose most likely token is the one that greedy
    decoding samples; top_k must be 1 or more, and the position's own id has no meaning. A prefix that prompts share is
    computed once if the backend can.
    """
    sequences = [np.append(prompt.ids, prompt.ids[: int(next_token)]) for prompt in prompts]
    pairs: list[tuple[Ids, Ids]] = []
    heads: dict[bytes, list[int]] = {}
    parts: list[list[int]] = []  # per prompt, the pairs with its scores, in order

    def add(before: Ids, scored: Ids) -> list[int]:
        if not len(scored):
            return []
        pairs.append((before, scored))
        return [len(pairs) - 1]

    shares = loaded.engine.backend.info.shares_prompts
    cuts = shared_prefix_lengths([prompt.ids for prompt in prompts]) if shares else [1] * len(prompts)
    turn = Turn()
    for ids, cut in zip(sequences, cuts, strict=True):
        await turn.pause()
        head = ids[:cut]
        if head.tobytes() not in heads:
            heads[head.tobytes()] = add(head[:1], head[1:])
        parts.append(heads[head.tobytes()] + add(head, ids[cut:]))
    scored = await score_completions(
        teacher, pairs, model=model, top_k=top_k, ranks=ranks, priority=priority, call=call
    )
    before_ends: list[TokenScores] = []
    after_ends: list[TokenScores] = []
    turn = Turn()
    for prompt, part in zip(prompts, parts, strict=True):
        await turn.pause()
        whole = TokenScores.concatenate([scored[index] for index in part], top_k, ranks=ranks)
        before_ends.append(whole[: len(prompt.ids) - 1])
        after_ends.append(whole[len(prompt.ids) - 1 :])
    return before_ends, after_ends


ID_BYTES = 100
"""Of an id with its log-probability and its text, as JSON."""


def check_reply_size(count: int, field: str, what: str, model: LoadedModel) -> None:
    """Raise INVALID_ARGUMENT if a reply would have too many ids. what: a description of the ids."""
    limit = model.limits.max_reply_bytes // ID_BYTES
    if count > limit:
        raise invalid(
            field,
            f"{field}: {what} make {count} ids, and one reply shows at most {limit}: ask for fewer of them, or "
            "send several requests",
        )


def check_top_k(value: int, field: str, model: LoadedModel) -> int:
    """The top-k of a field; -1 stands for the whole vocabulary. Raises INVALID_ARGUMENT above the limit."""
    max_top_k = model.limits.allowed_top_k
    top_k = model.limits.vocab_size if value == -1 else value
    if top_k > max_top_k:
        raise invalid(field, f"{field} is {value}: this server gives at most {max_top_k}; ask for less")
    return top_k


def prompt_logprobs(scores: TokenScores, k: int, tokenizer: Tokenizer) -> list[dict[str, Any] | None]:
    """vLLM's format: null for the first token, then per token a map from id to {logprob, rank, decoded_token}, with the
    prompt's own id first and then the k most likely ids.
    """
    assert scores.ranks is not None
    entries: list[dict[str, Any] | None] = [None]
    for own, logprob, rank, ids, logprobs in zip(
        scores.ids.tolist(),
        scores.logprobs.tolist(),
        scores.ranks.tolist(),
        scores.top_ids[:, :k].tolist(),
        scores.top_logprobs[:, :k].tolist(),
        strict=True,
    ):
        entry = {str(own): _entry(own, logprob, rank, tokenizer)}
        for top_rank, (index, value) in enumerate(zip(ids, logprobs, strict=True), 1):
            entry[str(index)] = _entry(index, value, top_rank, tokenizer)
        entries.append(entry)
    return entries


def _entry(index: int, logprob: float, rank: int, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"logprob": max(logprob, MIN_LOGPROB), "rank": rank, "decoded_token": tokenizer.token(index)}


def token_name(index: int, tokenizer: Tokenizer, as_id: bool) -> str:
    return f"token_id:{index}" if as_id else tokenizer.token(index)


class LegacyLogprobs:
    """The `logprobs` of /v1/completions: four lists, position by position.

    k: the number of most likely tokens in each map of top_logprobs, besides the token itself. If tokens have the same
    text, the map holds the likelier one.
    """

    def __init__(self, k: int, tokenizer: Tokenizer, *, as_ids: bool) -> None:
        self._k = k
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self.json: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}

    def add_first(self, index: int) -> None:
        """The prompt's first token, which has no log-probability."""
        self._add(index, None, None)

    def add_scores(self, scores: TokenScores) -> None:
        for index, logprob, ids, logprobs in zip(
            scores.ids.tolist(),
            scores.logprobs.tolist(),
            scores.top_ids[:, : self._k].tolist(),
            scores.top_logprobs[:, : self._k].tolist(),
            strict=True,
        ):
            top = {self._name(index): max(logprob, MIN_LOGPROB)}
            for other, value in zip(ids, logprobs, strict=True):
                name = self._name(other)
                top[name] = max(value, MIN_LOGPROB, top.get(name, MIN_LOGPROB))
            self._add(index, max(logprob, MIN_LOGPROB), top)

    def add_offsets(self, ids: Ids, *, special: bool) -> None:
        """Add the text offset of each of `ids`. special: whether special tokens are part of the text."""
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


def chat_logprobs(scores: TokenScores, k: int, tokenizer: Tokenizer, *, as_ids: bool) -> dict[str, Any]:
    """The `logprobs` of /v1/chat/completions: an entry per token, with the k most likely tokens."""

    def entry(index: int, logprob: float) -> dict[str, Any]:
        name = token_name(index, tokenizer, as_ids)
        return {"token": name, "logprob": max(logprob, MIN_LOGPROB), "bytes": list(name.encode())}

    content = [
        {
            **entry(index, logprob),
            "top_logprobs": [entry(other, value) for other, value in zip(ids, logprobs, strict=True)],
        }
        for index, logprob, ids, logprobs in zip(
            scores.ids.tolist(),
            scores.logprobs.tolist(),
            scores.top_ids[:, :k].tolist(),
            scores.top_logprobs[:, :k].tolist(),
            strict=True,
        )
    ]
    return {"content": content, "refusal": None}
