"""The torch backend: any causal language model that transformers can load, on one device."""

import itertools
import logging
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vold_packing.packed import ATTENTION, packed_states, register_varlen
from vold_packing.varlen import KERNELS
from vold_service.errors import ServiceError
from vold_service.fairness import FairShare

from vold_teacher.backends.base import Capabilities, ModelInfo, ScoredBatch
from vold_teacher.backends.decoding import DecoderLimits, TorchDecoder
from vold_teacher.backends.folder import eos_ids
from vold_teacher.backends.head import OutputHead, head_rows
from vold_teacher.backends.invariance import products_vary
from vold_teacher.backends.loading import choose_device, choose_dtype, load_model
from vold_teacher.backends.prefix import shared_prompt_states
from vold_teacher.backends.trial import try_transformers
from vold_teacher.batch import BatchSize, Layout, group_by_prompt
from vold_teacher.identity import weights_fingerprint
from vold_teacher.scoring import RowScores, chunk_rows, prediction_rows, score_rows
from vold_teacher.types import ScoreOptions, Sequence, SequenceScore

log = logging.getLogger("vold.teacher.torch")

# Tokens of one pass through the model: a CPU is about twice as fast if the activations of a pass stay in its caches. A
# GPU runs a batch in one pass.
PASS_TOKENS = {"cpu": 2048}

# The distance that rounding to 16 bits may put between two states, relative to their size. 36 layers of random weights
# have 0.02 in bfloat16; a state whose prompt has another token, or one more, is further away.
MAX_ROUNDING = 0.1

# Layers whose state is plain keys and values, which the decoder's cache can hold for rows of different lengths.
CACHEABLE_LAYERS = {"full_attention", "sliding_attention"}


class TorchBackend:
    """Scores and generates with a transformers model. Loading raises OSError with a message for the user, or its
    subclass IncompatibleVersionError if the installed transformers is the reason.
    """

    def __init__(
        self,
        path: Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_sequence: int | None = None,
        limits: DecoderLimits,
        max_logits: int | None = None,
        attention: str = "auto",
        compiled: bool = False,
        batch_invariant: bool = False,
        model: Any | None = None,
    ) -> None:
        """attention: auto, varlen, or an implementation of transformers. compiled: run the decoder through
        torch.compile. batch_invariant: a score is the same to the last bit in every batch; a warning says where it
        cannot be. model: of the folder's config, if there is one in memory already; its dtype stays.
        """
        if attention == "varlen" and compiled:
            raise OSError("--attention varlen and --compile cannot be had together: leave one of them out")
        try_transformers()
        self.device = choose_device(device)
        self.limits = limits
        self._apart = batch_invariant
        own = "auto" if attention == "varlen" else attention
        self.model = model if model is not None else load_model(path, choose_dtype(dtype, path, self.device), own)
        if model is not None and own != "auto":
            model.set_attn_implementation(own)
        self.model.to(self.device).eval().requires_grad_(False)
        config: Any = self.model.config.get_text_config(decoder=True)
        self.head = OutputHead(self.model)
        with torch.inference_mode():
            self.head.check(self.model)
        vocab_size = self.model.get_output_embeddings().weight.shape[0]
        self._pass_tokens = PASS_TOKENS.get(self.device.type)
        self.rows = chunk_rows(vocab_size, max_logits) if max_logits else head_rows(vocab_size, self.device)
        own_limit = getattr(config, "max_position_embeddings", None)
        if max_sequence is not None and own_limit is not None and max_sequence > own_limit:
            raise OSError(f"--max-sequence {max_sequence} is above the model's {own_limit}: ask for less")
        if compiled:
            # In place, so that the model and its head stay the same objects; dynamic: one graph for all batch shapes.
            self.model.base_model.compile(dynamic=True)
        layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
        cacheable = layer_types <= CACHEABLE_LAYERS and not getattr(self.model, "_is_stateful", False)
        # The sliding window of the decoder's attention: packed attention ignores it, so sequences must fit.
        self._window = getattr(config, "sliding_window", None) if "sliding_attention" in layer_types else None
        self._padded_layout = Layout.SHARED if cacheable and self._can_share_prompts() else Layout.SEPARATE
        packs = cacheable and not compiled and self._packs(attention)
        if batch_invariant and (reason := self._varies(packs)):
            log.warning("--batch-invariant: the last bits of a score depend on its batch, because %s", reason)
        self.info = ModelInfo(
            vocab_size=vocab_size,
            max_sequence=max_sequence or own_limit or 4096,
            dtype=str(self.model.dtype).removeprefix("torch."),
            backend="torch",
            eos_ids=eos_ids(path, config.eos_token_id),
            weights_fingerprint=weights_fingerprint(path),
            capabilities=Capabilities(generate=cacheable, ranks=True),
            hidden_size=self.model.get_output_embeddings().weight.shape[1],
            layout=Layout.PACKED if packs else self._padded_layout,
        )

    def _varies(self, packs: bool) -> str | None:
        """Why a score depends on what else is in its batch; None if it does not."""
        if not packs or self.device.type != "cpu":
            return "only packed batches on a CPU can do without"
        return products_vary(self.model)

    @torch.inference_mode()
    def score(self, sequences: Seq[Sequence]) -> ScoredBatch:
        layout = self.info.layout
        if layout is not Layout.PACKED or not self._window:
            return self._score(sequences, layout)
        # Each part by itself, so that a long sequence does not change how the others are computed.
        fits = [sequence.length <= self._window for sequence in sequences]
        if len(set(fits)) == 1:
            return self._score(sequences, layout if fits[0] else self._padded_layout)
        short = self._score(list(itertools.compress(sequences, fits)), layout)
        long = self._score([s for s, fit in zip(sequences, fits, strict=True) if not fit], self._padded_layout)
        parts = {True: iter(short.scores), False: iter(long.scores)}
        scores = [next(parts[fit]) for fit in fits]
        return ScoredBatch(scores, short.computed_tokens + long.computed_tokens, short.real_tokens + long.real_tokens)

    def _score(self, sequences: Seq[Sequence], layout: Layout) -> ScoredBatch:
        groups: Seq[Seq[int]] = list(group_by_prompt(sequences).values())
        if not BatchSize.of_groups([sequences[index] for index in group] for group in groups).shares_prompts(layout):
            layout = Layout.SEPARATE
            groups = [[index] for index in range(len(sequences))]
        states: list[Tensor] = []
        computed = real = 0
        passes = _split_into_passes(sequences, groups, layout, self._pass_tokens)
        for pass_groups in passes:
            states.append(self._states(sequences, pass_groups, layout))
            size = BatchSize.of_groups([sequences[index] for index in group] for group in pass_groups)
            computed += _computed_tokens(size, layout)
            real += size.packed_tokens
        hidden_RH = torch.cat(states) if len(states) > 1 else states[0]
        order = [index for pass_groups in passes for group in pass_groups for index in group]
        scores = self._scores(hidden_RH, [sequences[index] for index in order])
        by_index = dict(zip(order, scores, strict=True))
        return ScoredBatch([by_index[index] for index in range(len(sequences))], computed, real)

    def _states(self, sequences: Seq[Sequence], groups: Seq[Seq[int]], layout: Layout) -> Tensor:
        """The states [R, H] that predict the completion tokens of the groups' sequences, in the groups' order."""
        if layout is Layout.PACKED:
            prompts = [
                (sequences[group[0]].prompt, [sequences[index].completion for index in group]) for group in groups
            ]
            return packed_states(self.model.base_model, prompts, apart=self._apart)
        ordered = [sequences[index] for group in groups for index in group]
        if layout is Layout.SEPARATE:
            first_B = [len(sequence.prompt) for sequence in ordered]
            return _scored_states(self._separate_states(ordered), ordered, first_B)
        ends = list(itertools.accumulate(len(group) for group in groups))
        places = [range(end - len(group), end) for end, group in zip(ends, groups, strict=True)]
        return _scored_states(shared_prompt_states(self.model.base_model, ordered, places), ordered, [1] * len(ordered))

    def _scores(self, hidden_RH: Tensor, sequences: Seq[Sequence]) -> list[SequenceScore | ServiceError]:
        """Sequences with the same top-k are scored together: which of equal logits come first depends on the top-k."""
        sizes = {sequence.options.top_k for sequence in sequences}
        if len(sizes) == 1:
            return self._scores_of(hidden_RH, sequences)
        hidden = hidden_RH.split([len(sequence.completion) for sequence in sequences])
        scores: dict[int, SequenceScore | ServiceError] = {}
        for size in sizes:
            places = [place for place, sequence in enumerate(sequences) if sequence.options.top_k == size]
            part = self._scores_of(torch.cat([hidden[place] for place in places]), [sequences[p] for p in places])
            scores.update(zip(places, part, strict=True))
        return [scores[place] for place in range(len(sequences))]

    def _scores_of(self, hidden_RH: Tensor, sequences: Seq[Sequence]) -> list[SequenceScore | ServiceError]:
        candidates_M, candidate_counts_R = _candidates(sequences)
        temperature_B = torch.tensor([sequence.options.temperature for sequence in sequences])
        counts_B = torch.tensor([len(sequence.completion) for sequence in sequences])
        scores = score_rows(
            hidden_RH,
            self.head,
            torch.from_numpy(np.concatenate([s.completion for s in sequences]).astype(np.int64)).to(self.device),
            temperature_R=temperature_B.repeat_interleave(counts_B).to(self.device),
            top_k=max(sequence.options.top_k for sequence in sequences),
            entropy=any(sequence.options.entropy for sequence in sequences),
            ranks=any(sequence.options.ranks for sequence in sequences),
            candidates_M=candidates_M.to(self.device) if candidates_M is not None else None,
            candidate_counts_R=candidate_counts_R,
            rows=self.rows,
        )
        return _split(sequences, scores, hidden_RH)

    def _separate_states(self, sequences: Seq[Sequence]) -> Tensor:
        """Hidden states [B, S, H] of prompts and completions, padded on the right."""
        ids_BS = np.zeros((len(sequences), max(sequence.length for sequence in sequences)), np.int64)
        for row, sequence in enumerate(sequences):
            prompt = len(sequence.prompt)
            ids_BS[row, :prompt] = sequence.prompt
            ids_BS[row, prompt : sequence.length] = sequence.completion[:-1]
        # No mask: under causal attention no token attends to the padding on its right.
        hidden_BSH: Tensor = self.model.base_model(
            input_ids=torch.from_numpy(ids_BS).to(self.device), use_cache=False
        ).last_hidden_state
        return hidden_BSH

    @torch.inference_mode()
    def _can_share_prompts(self) -> bool:
        """Whether completions after a cached shared prompt have the same states as separate sequences."""
        sequences = self._probe_sequences()
        separate = self._states(sequences, [[0], [1], [2]], Layout.SEPARATE)
        try:
            shared = self._states(sequences, [[0, 1], [2]], Layout.SHARED)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            log.warning(
                "prompts are computed for each completion: this architecture's cache cannot share them: %s", error
            )
            return False
        if self._same(shared, separate):
            return True
        log.warning("prompts are computed for each completion: sharing them changes this architecture's numbers")
        return False

    def _packs(self, attention: str) -> bool:
        """Whether sequences are packed; if so, sets the attention. On a GPU a call for each segment is slower than
        padding, so there it takes a kernel for all segments, which has to be asked for.

        Raises OSError if varlen is asked for and cannot be had.
        """
        if attention == "auto":
            return self.device.type == "cpu" and self._can_pack(ATTENTION)
        if attention != "varlen":
            return False
        reasons = []
        for name, make in KERNELS.items():
            try:
                kernel = make(self.device, self.model.dtype)
            except RuntimeError as error:
                reasons.append(f"{name}: {error}")
                continue
            if self._can_pack(register_varlen(name, kernel)):
                log.info("sequences are packed; attention by %s", name)
                return True
            reasons.append(f"{name}: not for this architecture")
        raise OSError(f"--attention varlen cannot be had ({'; '.join(reasons)}): use auto")

    @torch.inference_mode()
    def _can_pack(self, attention: str) -> bool:
        """Whether packed sequences have the same states as separate sequences. If so, sets the packed attention."""
        default = self.model.config._attn_implementation
        if default != "sdpa":  # the architecture needs more than sdpa offers, such as Gemma 2's capped scores
            return False
        sequences = self._probe_sequences()
        separate = self._states(sequences, [[0], [1], [2]], Layout.SEPARATE)
        try:
            self.model.set_attn_implementation(attention)
            if self._same(self._states(sequences, [[0, 1], [2]], Layout.PACKED), separate):
                return True
            reason = "it changes this architecture's numbers"
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
        log.info("sequences are padded, not packed: %s", reason)
        self.model.set_attn_implementation(default)
        return False

    def _probe_sequences(self) -> list[Sequence]:
        ids = np.arange(1, 15, dtype=np.int32) % self.model.get_input_embeddings().num_embeddings
        cuts = [(ids[:9], ids[9:12]), (ids[:9], ids[10:]), (ids[2:5], ids[5:9])]
        return [Sequence(prompt, completion, ScoreOptions()) for prompt, completion in cuts]

    def _same(self, actual: Tensor, expected: Tensor) -> bool:
        """Whether states [R, H] are equal but for rounding. In 16 bits each state is compared as a whole: over the
        thousands of values of deep models, rounding moves some value by more than any useful tolerance.
        """
        if self.model.dtype == torch.float32:
            return torch.allclose(actual, expected, rtol=1e-4, atol=1e-4)
        errors_R, sizes_R = ((actual - expected).float().norm(dim=-1), expected.float().norm(dim=-1))
        return bool((errors_R <= MAX_ROUNDING * sizes_R).all())

    def decoder(self, share: FairShare | None = None) -> TorchDecoder:
        return TorchDecoder(self.model, self.head, self.limits, rows=self.rows, share=share)

    def close(self) -> None:
        for name in ("model", "head"):
            vars(self).pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _computed_tokens(size: BatchSize, layout: Layout) -> int:
    """Tokens to run under a layout that was chosen, padding included."""
    if layout is Layout.SHARED:
        return size.shared_tokens
    return size.packed_tokens if layout is Layout.PACKED else size.separate_tokens


def _split_into_passes(
    sequences: Seq[Sequence], groups: Seq[Seq[int]], layout: Layout, max_tokens: int | None
) -> list[list[Seq[int]]]:
    """Passes of at most `max_tokens`, similar lengths together. groups: indices of sequences of one prompt each."""
    if max_tokens is None:
        return [list(groups)]
    sized = sorted(
        ((BatchSize.of_groups([[sequences[index] for index in group]]), group) for group in groups),
        key=lambda item: item[0].longest_sequence,
    )
    passes: list[list[Seq[int]]] = []
    size: BatchSize | None = None
    for group_size, group in sized:
        grown = group_size if size is None else size + group_size
        if size is None or _computed_tokens(grown, layout) > max_tokens:
            passes.append([])
            grown = group_size
        passes[-1].append(group)
        size = grown
    return passes


def _scored_states(hidden_BSH: Tensor, sequences: Seq[Sequence], first_B: Seq[int]) -> Tensor:
    """The states [R, H] that predict the completion tokens; first_B: positions before each first completion token."""
    counts_B = torch.tensor([len(sequence.completion) for sequence in sequences])
    rows_R = prediction_rows(torch.tensor(first_B), counts_B, hidden_BSH.shape[1])
    return hidden_BSH.flatten(0, 1)[rows_R.to(hidden_BSH.device)]


def _candidates(sequences: Seq[Sequence]) -> tuple[Tensor | None, Tensor | None]:
    """Candidates of all rows, int64 [M], and their number per row [R]; (None, None) if no sequence has any."""
    if all(sequence.candidates is None for sequence in sequences):
        return None, None
    none = np.zeros(0, np.int32)
    ids = [none if s.candidates is None else s.candidates for s in sequences]
    counts = [np.zeros(len(s.completion)) if s.candidate_counts is None else s.candidate_counts for s in sequences]
    return (
        torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        torch.from_numpy(np.concatenate(counts).astype(np.int64)),
    )


def _split(sequences: Seq[Sequence], scores: RowScores, hidden_RH: Tensor) -> list[SequenceScore | ServiceError]:
    """The scores of each sequence as NumPy arrays, with the fields that it requested."""
    logprobs = scores.logprobs.cpu().numpy()
    top_ids = None if scores.top_ids is None else scores.top_ids.to(torch.int32).cpu().numpy()
    top_logprobs = None if scores.top_logprobs is None else scores.top_logprobs.cpu().numpy()
    candidate_logprobs = None if scores.candidate_logprobs is None else scores.candidate_logprobs.cpu().numpy()
    entropy = None if scores.entropy is None else scores.entropy.cpu().numpy()
    ranks = None if scores.ranks is None else scores.ranks.to(torch.int32).cpu().numpy()
    results: list[SequenceScore | ServiceError] = []
    row = candidate = 0
    for sequence in sequences:
        rows = slice(row, row + len(sequence.completion))
        row = rows.stop
        options = sequence.options
        own_candidates = None
        if sequence.candidates is not None and candidate_logprobs is not None:
            own_candidates = candidate_logprobs[candidate : candidate + len(sequence.candidates)]
            candidate += len(sequence.candidates)
        results.append(
            SequenceScore(
                logprobs=logprobs[rows],
                top_ids=top_ids[rows, : options.top_k] if options.top_k and top_ids is not None else None,
                top_logprobs=top_logprobs[rows, : options.top_k]
                if options.top_k and top_logprobs is not None
                else None,
                candidate_logprobs=own_candidates,
                entropy=entropy[rows] if options.entropy and entropy is not None else None,
                ranks=ranks[rows] if options.ranks and ranks is not None else None,
                hidden_states=hidden_RH[rows].float().cpu().numpy() if options.hidden_states else None,
            )
        )
    return results
