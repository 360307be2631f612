"""The torch backend: any causal language model that transformers can load, on one device."""

import copy
import itertools
import logging
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from vold_packing.packed import ATTENTION, packed_states
from vold_packing.transformers import attention_for, undocumented
from vold_service.errors import ServiceError

from vold_teacher.backends.base import Capabilities, ModelInfo, ScoredBatch
from vold_teacher.backends.decoding import DecoderLimits, TorchDecoder
from vold_teacher.backends.folder import eos_ids, text_config
from vold_teacher.backends.prefix import shared_hidden
from vold_teacher.backends.trial import try_transformers
from vold_teacher.batch import Layout, Size, by_prompt
from vold_teacher.identity import weights_fingerprint
from vold_teacher.scoring import RowScores, chunk_rows, prediction_rows, score_rows
from vold_teacher.types import ScoreOptions, Sequence, SequenceScore

with undocumented():
    from transformers.modeling_outputs import MoeModelOutputWithPast

log = logging.getLogger("vold.teacher.torch")

# Elements of one chunk of float32 logits: 8 MiB on a CPU, where it is read several times and should stay in the caches,
# 256 MiB on a GPU. A chunk has some rows in any case, to pay for reading the head: at a vocabulary of 152k and a hidden
# size of 896, 128 rows at once take a fifth less time a row than 64.
MAX_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}
MIN_ROWS = 128

# Tokens of one pass through the model: a CPU is about twice as fast where the activations of a pass stay in its caches.
# A GPU takes a batch at once.
PASS_TOKENS = {"cpu": 2048}

# Layers whose past is plain keys and values, which the decoder's cache can hold for rows of different ages.
CACHEABLE_LAYERS = {"full_attention", "sliding_attention"}


class _PassThrough(nn.Module):
    """Stands where a causal model has its decoder: what comes in as embeddings goes out as hidden states."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)  # a mixture of experts looks for its routers'


class OutputHead:
    """The model's own way from hidden states to logits: its `forward` with the decoder taken out.

    So softcapping (Gemma), scaling (Cohere, Granite) and biases are the model's own code, not a copy of it. `check`
    compares it with the whole model once.
    """

    def __init__(self, model: Any) -> None:
        self._model = copy.copy(model)
        self._model._modules = dict(model._modules)
        self._model._modules[model.base_model_prefix] = _PassThrough()

    def __call__(self, hidden_RH: Tensor) -> Tensor:
        """[R, H] to [R, V]."""
        return self._model(inputs_embeds=hidden_RH[None], use_cache=False).logits[0]

    def check(self, model: Any) -> None:
        """Raise OSError where the head after the decoder is not the whole model."""
        ids = torch.arange(8, device=model.device)[None] % model.get_input_embeddings().num_embeddings
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        whole = model(input_ids=ids, use_cache=False).logits[0]
        if not torch.allclose(self(hidden[0]), whole, rtol=1e-2, atol=1e-3):
            raise OSError(
                f"{type(model).__name__} computes its logits in a way that cannot be split from its decoder: "
                "serve a model of another architecture"
            )


class TorchBackend:
    """Scores and generates with a transformers model. Loading raises OSError with a message for the user: UnfitError,
    a kind of it, where transformers itself is the reason.
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
    ) -> None:
        """attention: auto, or an implementation of transformers. compiled: run the decoder through torch.compile."""
        try_transformers()
        self.device = _device(device)
        self.limits = limits
        if dtype == "auto" and self.device.type == "cpu":
            dtype = "float32"  # most CPUs have no arithmetic for 16-bit floats and take several times as long
        said = text_config(path)
        if dtype == "auto" and said.get("dtype", said.get("torch_dtype")) == "float32":
            dtype = "bfloat16"  # tensor cores compute float32 at a fraction of their speed
        self.model = _load(path, dtype, attention)
        self.model.to(self.device).eval().requires_grad_(False)
        config: Any = self.model.config.get_text_config(decoder=True)
        self.head = OutputHead(self.model)
        with torch.inference_mode():
            self.head.check(self.model)
        vocab_size = self.model.get_output_embeddings().weight.shape[0]
        self._pass_tokens = PASS_TOKENS.get(self.device.type)
        self.rows = max(
            chunk_rows(vocab_size, max_logits or MAX_LOGITS[self.device.type]), 1 if max_logits else MIN_ROWS
        )
        own_limit = getattr(config, "max_position_embeddings", None)
        if max_sequence is not None and own_limit is not None and max_sequence > own_limit:
            raise OSError(f"--max-sequence {max_sequence} is above the model's {own_limit}: ask for less")
        if compiled:
            # In place, so that the model and its head stay what they are; every shape of a batch is one graph.
            self.model.base_model.compile(dynamic=True)
        layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
        plain = layer_types <= CACHEABLE_LAYERS and not getattr(self.model, "_is_stateful", False)
        # The decoder's layers that look back so far only; a packed completion must fit.
        self._window = getattr(config, "sliding_window", None) if "sliding_attention" in layer_types else None
        self._padded = Layout.SHARED if plain and self._can_share_prompts() else Layout.SEPARATE
        packs = self.device.type == "cpu" and attention == "auto" and plain and not compiled and self._can_pack()
        self.info = ModelInfo(
            vocab_size=vocab_size,
            max_sequence=max_sequence or own_limit or 4096,
            dtype=str(self.model.dtype).removeprefix("torch."),
            backend="torch",
            eos_ids=eos_ids(path, config.eos_token_id),
            weights_fingerprint=weights_fingerprint(path),
            capabilities=Capabilities(generate=plain, ranks=True),
            layout=Layout.PACKED if packs else self._padded,
        )

    @torch.inference_mode()
    def score(self, sequences: Seq[Sequence]) -> ScoredBatch:
        layout = self.info.layout
        if layout is Layout.PACKED and self._window and max(sequence.length for sequence in sequences) > self._window:
            layout = self._padded
        groups = list(by_prompt(sequences).values())
        shares = Size.of([sequences[index] for index in group] for group in groups).shares(layout)
        units: Seq[Seq[int]] = groups if shares else [[index] for index in range(len(sequences))]
        if not shares:
            layout = Layout.SEPARATE
        states: list[Tensor] = []
        computed = real = 0
        passes = _passes(sequences, units, layout, self._pass_tokens)
        for part in passes:
            states.append(self._states(sequences, part, layout))
            cost = Size.of([sequences[index] for index in unit] for unit in part)
            computed += _cost(cost, layout)
            real += cost.packed_tokens
        hidden_RH = torch.cat(states) if len(states) > 1 else states[0]
        order = [index for part in passes for unit in part for index in unit]
        scores = self._scores(hidden_RH, [sequences[index] for index in order])
        by_index = dict(zip(order, scores, strict=True))
        return ScoredBatch([by_index[index] for index in range(len(sequences))], computed, real)

    def _states(self, sequences: Seq[Sequence], units: Seq[Seq[int]], layout: Layout) -> Tensor:
        """The states [R, H] that predict the completions' tokens, the units' sequences one after another."""
        if layout is Layout.PACKED:
            packs = [(sequences[unit[0]].prompt, [sequences[index].completion for index in unit]) for unit in units]
            return packed_states(self.model.base_model, packs)
        chosen = [sequences[index] for unit in units for index in unit]
        if layout is Layout.SEPARATE:
            return _scored_states(self._separate_hidden(chosen), chosen, [len(sequence.prompt) for sequence in chosen])
        ends = list(itertools.accumulate(len(unit) for unit in units))
        groups = [range(end - len(unit), end) for end, unit in zip(ends, units, strict=True)]
        return _scored_states(shared_hidden(self.model.base_model, chosen, groups), chosen, [1] * len(chosen))

    def _scores(self, hidden_RH: Tensor, sequences: Seq[Sequence]) -> list[SequenceScore | ServiceError]:
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

    def _separate_hidden(self, sequences: Seq[Sequence]) -> Tensor:
        """Hidden states [B, S, H] of prompts and completions, padded on the right."""
        ids_BS = np.zeros((len(sequences), max(sequence.length for sequence in sequences)), np.int64)
        for row, sequence in enumerate(sequences):
            prompt = len(sequence.prompt)
            ids_BS[row, :prompt] = sequence.prompt
            ids_BS[row, prompt : sequence.length] = sequence.completion[:-1]
        # No mask: under causal attention nothing to the right of a token, padding included, can reach it.
        hidden_BSH: Tensor = self.model.base_model(
            input_ids=torch.from_numpy(ids_BS).to(self.device), use_cache=False
        ).last_hidden_state
        return hidden_BSH

    @torch.inference_mode()
    def _can_share_prompts(self) -> bool:
        """Whether completions after a cached prompt have the states that they have on their own."""
        sequences = self._samples()
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

    @torch.inference_mode()
    def _can_pack(self) -> bool:
        """Whether packed sequences have the states that they have on their own; if so, the model's attention packs."""
        usual = self.model.config._attn_implementation
        if usual != "sdpa":  # an architecture that needs what sdpa has not, such as Gemma 2's capped scores
            return False
        sequences = self._samples()
        separate = self._states(sequences, [[0], [1], [2]], Layout.SEPARATE)
        try:
            self.model.set_attn_implementation(ATTENTION)
            if self._same(self._states(sequences, [[0, 1], [2]], Layout.PACKED), separate):
                return True
            why = "it changes this architecture's numbers"
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            why = str(error).partition("\n")[0]
        log.info("sequences are padded, not packed: %s", why)
        self.model.set_attn_implementation(usual)
        return False

    def _samples(self) -> list[Sequence]:
        ids = np.arange(1, 15, dtype=np.int32) % self.model.get_input_embeddings().num_embeddings
        cuts = [(ids[:9], ids[9:12]), (ids[:9], ids[10:]), (ids[2:5], ids[5:9])]
        return [Sequence(prompt, completion, ScoreOptions()) for prompt, completion in cuts]

    def _same(self, found: Tensor, wanted: Tensor) -> bool:
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2
        return torch.allclose(found, wanted, rtol=tolerance, atol=tolerance)

    def decoder(self) -> TorchDecoder:
        return TorchDecoder(self.model, self.head, self.limits, rows=self.rows)

    def close(self) -> None:
        for name in ("model", "head"):
            vars(self).pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _cost(size: Size, layout: Layout) -> int:
    """Tokens to run, padding included, where a batch is known to be worth its layout."""
    if layout is Layout.SHARED:
        return size.shared_tokens
    return size.packed_tokens if layout is Layout.PACKED else size.separate_tokens


def _passes(sequences: Seq[Sequence], units: Seq[Seq[int]], layout: Layout, tokens: int | None) -> list[list[Seq[int]]]:
    """The units, each some indices of one prompt, in passes of at most so many tokens, like lengths together."""
    if tokens is None:
        return [list(units)]
    sized = sorted(
        ((Size.of([[sequences[index] for index in unit]]), unit) for unit in units), key=lambda item: item[0].longest
    )
    passes: list[list[Seq[int]]] = []
    size: Size | None = None
    for own, unit in sized:
        grown = own if size is None else size + own
        if size is None or _cost(grown, layout) > tokens:
            passes.append([])
            grown = own
        passes[-1].append(unit)
        size = grown
    return passes


def _scored_states(hidden_BSH: Tensor, sequences: Seq[Sequence], first_B: Seq[int]) -> Tensor:
    """The states [R, H] that predict the completions' tokens; first_B: how many positions precede each first token."""
    counts_B = torch.tensor([len(sequence.completion) for sequence in sequences])
    rows_R = prediction_rows(torch.tensor(first_B), counts_B, hidden_BSH.shape[1])
    return hidden_BSH.flatten(0, 1)[rows_R.to(hidden_BSH.device)]


def _candidates(sequences: Seq[Sequence]) -> tuple[Tensor | None, Tensor | None]:
    """Candidates of all rows together: int64 [M] and, per row, how many [R]; (None, None) where nobody asks."""
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
    """Each sequence's rows, as NumPy arrays of its own, and of them what it asked for."""
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
        of_candidates = None
        if sequence.candidates is not None and candidate_logprobs is not None:
            of_candidates = candidate_logprobs[candidate : candidate + len(sequence.candidates)]
            candidate += len(sequence.candidates)
        results.append(
            SequenceScore(
                logprobs=logprobs[rows],
                top_ids=top_ids[rows, : options.top_k] if options.top_k and top_ids is not None else None,
                top_logprobs=top_logprobs[rows, : options.top_k]
                if options.top_k and top_logprobs is not None
                else None,
                candidate_logprobs=of_candidates,
                entropy=entropy[rows] if options.entropy and entropy is not None else None,
                ranks=ranks[rows] if options.ranks and ranks is not None else None,
                hidden_states=hidden_RH[rows].float().cpu().numpy() if options.hidden_states else None,
            )
        )
    return results


def _load(path: Path, dtype: str, attention: str) -> Any:
    """The model with every one of its weights from the checkpoint. Raises OSError with one line."""
    loader: Any = AutoModelForCausalLM  # its annotations leave out what output_loading_info changes
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        model, report = loader.from_pretrained(
            path,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation=attention_for(config) if attention == "auto" else attention,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise OSError(f"cannot read the weights in {path}: {error}; copy the model there again") from error
    # An ImportError is an attention that is not installed.
    except (ImportError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        raise OSError(f"cannot load a causal language model from {path}: {first}") from error
    # transformers would fill these in at random, and the teacher's numbers would be noise.
    if report["missing_keys"]:
        raise OSError(
            f"the weights in {path} lack {len(report['missing_keys'])} tensors that its config.json asks for, "
            f"{min(report['missing_keys'])} among them: copy the whole model there again"
        )
    if report["mismatched_keys"]:
        name, found, wanted = min(report["mismatched_keys"])
        raise OSError(
            f"{name} in {path} has shape {list(found)}, where its config.json asks for {list(wanted)}: the config and "
            "the weights are not of one model"
        )
    return model


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise OSError("--device cuda: torch sees no CUDA device; use --device cpu or auto")
    return torch.device(name)
