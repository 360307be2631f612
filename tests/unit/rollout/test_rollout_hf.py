"""The decoding loop: a completion depends on seed, row and prompt alone, and follows the student's distribution."""

import logging
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from noise_prompts import IMAGE_PROMPTS, TEXT_PROMPTS
from tiny_students import FAMILIES, tiny_student
from transformers import DynamicCache, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.data.faults import RowError
from vold_trainer.data.images import LazyImage, LazyImages
from vold_trainer.errors import RunError
from vold_trainer.pocket.world import make_examples
from vold_trainer.rollout.base import Sampling
from vold_trainer.rollout.hf import HfEngine, generate
from vold_trainer.rollout.sampler import Sampler, uniforms
from vold_trainer.student.batching import make_batch
from vold_trainer.student.cache import ReservedLayer, decoding_cache
from vold_trainer.student.models import CompletionScorer, load_student


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A student of the family and prompts of different lengths, half of them with pictures where it reads these."""
    folder = tiny_student(request.param, tmp_path_factory.mktemp("family"))
    student = load_student(StudentConfig(path=str(folder)))
    with torch.no_grad():  # as initialised, tied weights only ever repeat the last token
        for name, value in student.model.named_parameters():
            if "layers." in name and value.ndim == 2:
                value.mul_(4)
    return student, TEXT_PROMPTS if request.param == "qwen3" else [*TEXT_PROMPTS, *IMAGE_PROMPTS]


@pytest.fixture(scope="module")
def pocket():
    return load_student(StudentConfig(path="pocket:student"))


def test_greedy_completions_are_those_of_transformers(family):
    student, prompts = family
    rollouts = generate(student, prompts, max_tokens=20, temperature=0.0)
    inputs = student.encode(prompts)
    expected = student.model.generate(
        **inputs, max_new_tokens=20, do_sample=False, eos_token_id=student.eos_ids, pad_token_id=student.pad_id,
        suppress_tokens=student.banned_ids or None,
    )  # fmt: skip
    for rollout, ids in zip(rollouts, expected[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        assert list(rollout.ids) == ids[: len(rollout.ids)]
        assert rollout.truncated or rollout.ids[-1] in student.eos_ids


def test_log_probabilities_at_sampling_time_are_those_of_training(family):
    """Checks the cache, positions and masks of every family, with rows that end at different positions."""
    student, prompts = family
    rollouts = generate(student, prompts, group=3, max_tokens=24, temperature=0.8, seed=11, logprobs=True, candidates=4)
    assert any(not rollout.truncated for rollout in rollouts)
    batch = make_batch(student, [r.example for r in rollouts], [r.ids for r in rollouts])
    with torch.no_grad():
        own = CompletionScorer(student.model).eval()(batch.inputs, batch.predicts_BS, batch.ids_N, 0.8)
    sampled = torch.from_numpy(np.concatenate([rollout.logprobs for rollout in rollouts]))
    assert torch.allclose(own.logprobs_N, sampled, atol=1e-4)
    assert all(rollout.candidates.shape == (len(rollout.ids), 4) for rollout in rollouts)
    apart = generate(student, prompts, group=3, max_tokens=24, temperature=0.8, seed=11, batch=4)
    assert [rollout.ids for rollout in apart] == [rollout.ids for rollout in rollouts]
    assert apart[0].logprobs is None


@pytest.fixture(scope="module")
def one_call(pocket):
    """Prompts of many lengths and their completions, generated in one call."""
    prompts = [*make_examples("train", 3, modality="text"), *make_examples("train", 3, modality="image")]
    return prompts, generate(pocket, prompts, group=3, max_tokens=16, seed=7, first_row=100)


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)), batch=st.integers(0, 20))
def test_a_row_does_not_depend_on_batching(pocket, one_call, order, cuts, batch):
    prompts, expected = one_call
    by_prompt = {}
    for index in order:  # each alone: any order, and a batch larger or smaller than the group
        by_prompt[index] = generate(
            pocket, [prompts[index]], group=3, max_tokens=16, seed=7, first_row=100 + 3 * index, batch=batch
        )
    assert [r for index in range(6) for r in by_prompt[index]] == expected
    ranks = []  # as several processes would share them
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 6], strict=True):
        ranks += HfEngine(pocket, batch=batch).generate(
            prompts[start:end], Sampling(group=3, max_tokens=16), seed=7, first_row=100 + 3 * start
        )
    assert ranks == expected


def test_a_longer_limit_gives_the_same_first_tokens(pocket, one_call):
    prompts, expected = one_call
    short = generate(pocket, prompts, group=3, max_tokens=6, seed=7, first_row=100)
    assert [r.ids for r in short] == [r.ids[:6] for r in expected]
    assert [r.truncated for r in short] == [len(r.ids) > 6 or r.truncated for r in expected]


def test_prompts_are_computed_once_and_ended_sequences_leave_the_batch(pocket):
    prompts = make_examples("train", 4, modality="text")
    shapes = []
    hook = pocket.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        rollouts = generate(pocket, prompts, group=8, max_tokens=48, seed=1)
    finally:
        hook.remove()
    assert shapes[0] == (4, max(len(r.prompt_ids) for r in rollouts))
    batches = [rows for rows, _ in shapes[1:]]
    assert all(length == 1 for _, length in shapes[1:])
    assert batches == sorted(batches, reverse=True)
    assert batches[0] == 32
    needed = sum(len(r.ids) - 1 for r in rollouts)
    assert needed <= sum(batches) < 2 * needed
    assert len(batches) == max(len(r.ids) for r in rollouts) - 1


def test_on_finished_gets_rows_in_the_order_in_which_they_end(pocket):
    finished = []
    prompts = make_examples("train", 4, modality="text")
    rollouts = generate(pocket, prompts, group=4, max_tokens=48, seed=2, on_finished=finished.extend)
    assert sorted(finished, key=lambda r: r.row) == rollouts
    assert [len(r.ids) for r in finished] == sorted(len(r.ids) for r in finished)


def test_training_mode_and_gradients_are_left_as_they_were(pocket):
    pocket.model.train()
    grads = []
    prompts = make_examples("train", 1, modality="text")
    generate(pocket, prompts, max_tokens=4, on_finished=lambda _: grads.append(torch.is_grad_enabled()))
    assert pocket.model.training
    assert all(grads)
    pocket.model.eval()


def test_logits_that_are_not_numbers_stop_the_run():
    student = load_student(StudentConfig(path="pocket:student"))
    student.model.train()
    with torch.no_grad():
        student.model.get_output_embeddings().weight[5] = math.nan
    with pytest.raises(RunError, match="logits are not numbers"):
        generate(student, make_examples("train", 2, modality="text"), max_tokens=4)
    assert student.model.training


def test_no_prompts_give_no_rollouts(pocket):
    assert generate(pocket, [], max_tokens=4) == []


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_samples_follow_the_distribution(temperature, top_p):
    """Pearson's chi-square over 40,000 samples: 5 ids left, so a value above 23.5 has a chance of 1 in 10,000."""
    logits_V = torch.tensor([1.0, -0.5, 0.3, 2.0, 0.0, 0.8, -1.0])
    sampler = Sampler(temperature, top_p, banned=torch.tensor([2, 6]))
    numbers = torch.from_numpy(uniforms(3, range(400), 100)).flatten()
    sampled = sampler(logits_V.expand(len(numbers), -1), numbers)
    scaled_V = (logits_V / temperature).index_fill(0, torch.tensor([2, 6]), -torch.inf)
    expected_V = TopPLogitsWarper(top_p)(None, scaled_V.unsqueeze(0))[0].softmax(-1) * len(numbers)
    counts_V = torch.bincount(sampled.ids_B, minlength=7)
    assert (counts_V[expected_V == 0] == 0).all()
    some_V = expected_V > 0
    assert ((counts_V - expected_V)[some_V].square() / expected_V[some_V]).sum() < 23.5
    full_V = (logits_V / temperature).log_softmax(-1)
    assert torch.allclose(sampled.logprobs_B, full_V[sampled.ids_B])


def test_generate_follows_the_students_distribution(pocket):
    """Chi-square again, over the first token of a prompt, ids expected fewer than 8 times taken together."""
    example = make_examples("train", 1, modality="text")[0]
    rollouts = generate(pocket, [example], group=3000, max_tokens=1, temperature=4.0, seed=4)
    logits_V = pocket.model(**pocket.encode([example])).logits[0, -1].detach() / 4.0
    expected_V = logits_V.index_fill(0, torch.tensor(pocket.banned_ids), -torch.inf).softmax(-1) * len(rollouts)
    counts_V = torch.bincount(torch.tensor([r.ids[0] for r in rollouts]), minlength=len(expected_V))
    rare_V = expected_V < 8
    counts = torch.cat([counts_V[~rare_V], counts_V[rare_V].sum()[None]])
    expected = torch.cat([expected_V[~rare_V], expected_V[rare_V].sum()[None]])
    cells = len(counts)
    assert cells > 3
    assert ((counts - expected).square() / expected).sum() < cells + 4 * math.sqrt(2 * cells)


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=12, unique=True),
    top_p=st.floats(0.05, 0.99),
    number=st.floats(0, 1, exclude_max=True),
)
def test_top_p_keeps_what_transformers_keeps(logits, top_p, number):
    logits_1V = torch.tensor([logits])
    (sampled,) = Sampler(1.0, top_p)(logits_1V, torch.tensor([number], dtype=torch.float64)).ids_B.tolist()
    shares = logits_1V.softmax(-1).double()[0].sort(descending=True).values.cumsum(0)
    if (shares - top_p).abs().min() > 1e-6:  # else rounding decides
        kept = TopPLogitsWarper(top_p)(None, logits_1V)[0].isfinite()
        # Of ids that are equally likely, transformers keeps some and leaves others out.
        assert kept[sampled] or logits_1V[0, sampled] >= logits_1V[0, kept].min() - 1e-6


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=12, unique=True),
    options=st.tuples(st.integers(0, 13), st.sampled_from([0.0, 0.05, 0.3, 1.0]), st.sampled_from([1.0, 0.9, 0.5])),
    number=st.floats(0, 1, exclude_max=True),
)
def test_min_p_top_k_and_top_p_keep_what_transformers_keeps(logits, options, number):
    """In the order in which vLLM applies them."""
    top_k, min_p, top_p = options
    logits_1V = torch.tensor([logits])
    kept_1V = logits_1V
    if min_p:
        kept_1V = MinPLogitsWarper(min_p)(None, kept_1V)
    if top_k:
        kept_1V = TopKLogitsWarper(top_k)(None, kept_1V)
    shares = kept_1V.softmax(-1).double()[0].sort(descending=True).values
    ratios = (logits_1V.softmax(-1) / logits_1V.softmax(-1).max() - min_p).abs()
    assume(top_p == 1 or (shares.cumsum(0) - top_p).abs().min() > 1e-6)  # else rounding decides
    assume(min_p in (0.0, 1.0) or ratios.min() > 1e-6)
    if top_p < 1:
        kept_1V = TopPLogitsWarper(top_p)(None, kept_1V)
    (sampled,) = Sampler(1.0, top_p, top_k, min_p)(
        logits_1V, torch.tensor([number], dtype=torch.float64)
    ).ids_B.tolist()
    kept_V = kept_1V[0].isfinite()
    assert kept_V[sampled] or logits_1V[0, sampled] >= logits_1V[0, kept_V].min() - 1e-6


def test_options_that_leave_ids_out_reach_the_completions(pocket):
    example = make_examples("train", 1, modality="text")[0]
    several = {r.ids[0] for r in generate(pocket, [example], group=200, max_tokens=1, temperature=4.0, seed=4)}
    assert len(several) > 3
    for option in ({"top_k": 1}, {"min_p": 1.0}):
        first = generate(pocket, [example], group=200, max_tokens=1, temperature=4.0, seed=4, **option)
        assert len({rollout.ids[0] for rollout in first}) == 1


def test_uniforms_depend_on_the_row_and_are_uniform():
    numbers = uniforms(9, [4, 5, 6], 50)
    assert np.array_equal(uniforms(9, [6], 20)[0], numbers[2, :20])
    assert not np.isin(uniforms(10, [4, 5, 6], 50), numbers).any()
    assert not np.isin(numbers[0], numbers[1]).any()
    assert uniforms(-1, [0], 3).shape == (1, 3)
    many = np.sort(uniforms(0, range(2000), 5).flatten())
    assert np.abs(many - (np.arange(10_000) + 0.5) / 10_000).max() < 0.02  # Kolmogorov and Smirnov at 1 in 1000: 0.0195


def test_the_cache_holds_what_the_usual_one_holds(pocket):
    ours, usual = decoding_cache(pocket.model.config, 4), DynamicCache(config=pocket.model.config)
    assert all(isinstance(layer, ReservedLayer) for layer in ours.layers)
    rng = torch.Generator().manual_seed(0)
    for sequences, new, kept in ((2, 3, [1, 0, 1]), (3, 1, [0, 1, 2]), (3, 2, [2, 0]), (2, 7, [0, 1]), (2, 1, [1])):
        keys, values = torch.randn(2, sequences, 3, new, 8, generator=rng)
        for mine, theirs in zip(ours.update(keys, values, 0), usual.update(keys, values, 0), strict=True):
            assert torch.equal(mine, theirs)
        for cache in (ours, usual):
            cache.reorder_cache(torch.tensor(kept))
    assert ours.get_seq_length() == usual.get_seq_length() == 14


@pytest.mark.parametrize("batch", [0, 6, 2])
def test_an_example_at_fault_costs_its_own_group_alone(pocket, one_call, batch, tmp_path):
    prompts, expected = one_call
    broken = dict(enumerate(prompts))
    broken[1] = replace(prompts[1], messages=({"role": "user", "content": "3 + " * 300},), where="rows.jsonl:2")
    prompts[4].images[0].save(tmp_path / "half.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "half.jpg").read_bytes()[:-200])
    half = LazyImage(tmp_path / "half.jpg", "rows.jsonl:5")  # its header can be read
    broken[4] = replace(prompts[4], images=LazyImages([half]), where="rows.jsonl:5")
    faults = {}
    options = {"group": 3, "max_tokens": 16, "seed": 7, "first_row": 100, "batch": batch}
    rollouts = generate(pocket, list(broken.values()), **options, on_fault=faults.__setitem__)
    assert rollouts == [rollout for rollout in expected if (rollout.row - 100) // 3 not in (1, 4)]
    assert sorted(faults) == [1, 4]
    assert (faults[1].kind, faults[4].kind) == ("too long", "unreadable")
    assert re.match(
        r"rows\.jsonl:2: row 'train-\S+': its prompt has \d+ tokens, and the student .* 512", str(faults[1])
    )
    with pytest.raises(RowError, match=r"rows\.jsonl:2: row .* Mend the row, or set data\.skip_broken=true"):
        generate(pocket, [broken[1]], max_tokens=4)


def test_a_prompt_that_is_too_long_has_no_warning_of_the_tokenizer(pocket):
    warned = []
    handler = logging.Handler()
    handler.emit = warned.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    pocket.tokenizer.deprecation_warnings.clear()  # it warns once
    long = Example("long", ({"role": "user", "content": "3 + " * 300},), "")
    try:
        generate(pocket, [long], max_tokens=4, on_fault=lambda index, fault: None)
    finally:
        logger.removeHandler(handler)
    assert not [record.getMessage() for record in warned]


def test_a_chat_template_may_raise_anything(pocket):
    own = pocket.processor.chat_template
    refusing = "{% if '7' in messages[0].content|string %}{{ raise_exception('no sevens') }}{% endif %}"
    prompts = [Example(str(n), ({"role": "user", "content": f"{n} + 1"},), "", where=f"f:{n}") for n in range(6, 9)]
    expected = generate(pocket, prompts, max_tokens=8, seed=1)
    faults = {}
    try:
        pocket.processor.chat_template = refusing + own
        rollouts = generate(pocket, prompts, max_tokens=8, seed=1, on_fault=faults.__setitem__)
    finally:
        pocket.processor.chat_template = own
    assert rollouts == [expected[0], expected[2]]
    assert {index: str(fault) for index, fault in faults.items()} == {1: "f:7: row '7': no sevens"}
