"""What a teacher may answer and what it may not: no alarm on a language model's values, an alarm on each fault."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vold_trainer.scoring.sanity import (
    MIN_HISTORY,
    MIN_ROWS,
    MIN_TOKENS,
    Figures,
    TeacherSanity,
    gap_percentile,
    valid_entropies,
    valid_logprobs,
)

VOCAB = 151_936
SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=20)


def figures(teacher, student=None, entropy=None, repeated=None, vocab=VOCAB, **options) -> Figures:
    teacher = np.asarray(teacher, np.float32)
    student = np.full(len(teacher), -1.0, np.float32) if student is None else np.asarray(student, np.float32)
    repeated = np.zeros(len(teacher), bool) if repeated is None else repeated
    return Figures.of(teacher, student, repeated, entropy, vocab_size=vocab, **options)


def names(teacher, *args, history=(), vocab=VOCAB, **options) -> list[str]:
    sanity = TeacherSanity(vocab)
    sanity.restore({"percentiles": list(history)})
    return [alarm.name for alarm in sanity.observe(figures(teacher, *args, vocab=vocab, **options))]


def sampled(rng, tokens, ids, sharpness, agreement):
    """Log-probabilities of tokens sampled from a student, and of a teacher that agrees with it more or less."""
    student_NV = rng.normal(0, sharpness, (tokens, ids))
    teacher_NV = agreement * student_NV + rng.normal(0, sharpness, (tokens, ids))
    student_NV -= np.log(np.exp(student_NV).sum(-1, keepdims=True))
    teacher_NV -= np.log(np.exp(teacher_NV).sum(-1, keepdims=True))
    chosen = (student_NV + rng.gumbel(size=student_NV.shape)).argmax(-1)
    entropy = -(np.exp(teacher_NV) * teacher_NV).sum(-1)
    rows = np.arange(tokens)
    return teacher_NV[rows, chosen], student_NV[rows, chosen], entropy


@few
@given(SEEDS, st.integers(1, 600), st.integers(20, 100), st.floats(2.0, 8.0), st.floats(0.0, 2.0))
def test_no_alarm_on_what_two_models_say_of_sampled_tokens(seed, tokens, ids, sharpness, agreement):
    rng = np.random.default_rng(seed)
    sanity = TeacherSanity(ids)
    for _ in range(2 * MIN_HISTORY):
        teacher, student, entropy = sampled(rng, tokens, ids, sharpness, agreement)
        assert sanity.observe(figures(teacher, student, entropy, vocab=ids)) == []


@few
@given(SEEDS, st.integers(1, 2000), st.floats(0.5, 1.0))
def test_no_alarm_on_a_confident_teacher_of_a_student_that_learned_from_it(seed, tokens, certain):
    """Nearly every token is certain for both, and the log-probability is 0.0 once it is rounded."""
    rng = np.random.default_rng(seed)
    sure = rng.random(tokens) < certain
    teacher = np.where(sure, -0.0, -rng.exponential(2.0, tokens))
    student = np.where(sure, -rng.exponential(0.01, tokens), -rng.exponential(2.0, tokens))
    assert names(teacher, student) == []


@few
@given(SEEDS, st.integers(1, 2000))
def test_no_alarm_on_traces_of_the_teacher_itself(seed, tokens):
    """Greedy traces are certain to the teacher, and anything to a student that did not sample them."""
    student = -np.random.default_rng(seed).exponential(3.0, tokens)
    assert names(np.zeros(tokens), student, on_policy=False, history=[0.1] * 10) == []


@pytest.mark.parametrize("length", [1, 2])
def test_no_alarm_on_short_answers_that_are_sampled_again_and_again(length):
    """64 times the same answer to one prompt have one value, rightly."""
    group = 4 * MIN_ROWS
    teacher = np.tile([-0.7, -0.3][:length], group)
    repeated = np.arange(group).repeat(length) > 0
    assert names(teacher, repeated=repeated) == []
    assert names(teacher[: MIN_ROWS - 1]) == []
    assert "equal" in names(np.full(MIN_ROWS, -0.7)), "of so many prompts they are not"


@few
@given(st.integers(MIN_ROWS, 3000), st.floats(-30, 0), SEEDS)
def test_a_constant_is_an_alarm_with_rounding_and_without(tokens, value, seed):
    """0.0 too, if the student was not certain. A value at the edge of a bin is rounded to both sides of it."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(-2e-4, 2e-4, tokens)
    odd = rng.permutation(tokens) < tokens // 101
    values = np.where(odd, -rng.exponential(5.0, tokens), np.minimum(value + noise, 0))
    assert "equal" in names(values)


def test_minus_infinity_everywhere_is_an_alarm():
    assert names(np.full(MIN_ROWS, -np.inf)) == ["equal"]


@few
@given(st.integers(MIN_ROWS, 2000), st.integers(100, 200_000), st.floats(0, 0.05), SEEDS)
def test_a_uniform_teacher_is_an_alarm_without_its_entropy(tokens, vocab, noise, seed):
    logits = np.random.default_rng(seed).normal(0, noise, tokens)
    found = names(logits - math.log(vocab), vocab=vocab)
    assert "uniform" in found


@few
@given(st.integers(2 * MIN_ROWS, 2000), st.integers(100, 200_000), SEEDS)
def test_a_high_entropy_is_an_alarm_for_more_than_half_of_the_tokens(tokens, vocab, seed):
    rng = np.random.default_rng(seed)
    teacher = -rng.exponential(5.0, tokens)
    entropy = np.full(tokens, 0.5 * math.log(vocab), np.float32)
    entropy[: tokens // 2] = 0.95 * math.log(vocab)
    assert "uniform" not in names(teacher, entropy=entropy, vocab=vocab)
    entropy[: tokens // 2 + 1] = 0.95 * math.log(vocab)
    assert "uniform" in names(teacher, entropy=entropy, vocab=vocab)


def test_invalid_values_are_an_alarm_even_if_there_are_no_others():
    assert names([-1.0] * 3, invalid=1) == ["invalid"]
    assert names([math.nan] * 3, invalid=3) == ["invalid"]
    assert names([math.nan] * 3) == [], "masked"


def test_which_values_a_model_gives():
    values = np.array([0.0, 1e-4, -1e9, -math.inf, math.inf, math.nan, 0.5], np.float32)
    assert valid_logprobs(values).tolist() == [True, True, True, True, False, False, False]
    assert valid_entropies(values).tolist() == [True, True, False, False, False, False, True]


@few
@given(SEEDS, st.integers(MIN_TOKENS, 1000), st.floats(0.5, 3.0))
def test_a_gap_far_above_the_usual_one_is_an_alarm_once_there_is_a_history(seed, tokens, size):
    rng = np.random.default_rng(seed)
    student = -rng.exponential(1.0, tokens)
    sane, broken = student - rng.uniform(0.9, 1.0, tokens) * size, student - 4 * size
    sanity = TeacherSanity(VOCAB)
    for step in range(MIN_HISTORY):
        assert "gap" not in [alarm.name for alarm in sanity.observe(figures(broken if step == 0 else sane, student))]
    assert "gap" in [alarm.name for alarm in sanity.observe(figures(broken, student))]
    assert sanity.in_a_row == 1
    assert sanity.observe(figures(sane, student)) == []
    assert sanity.in_a_row == 0


@few
@given(SEEDS, st.integers(0, 12))
def test_a_restored_sanity_goes_on_as_the_one_that_was_saved(seed, before):
    rng = np.random.default_rng(seed)

    def step() -> Figures:
        student = -rng.exponential(1.0, 200)
        return figures(student - rng.exponential(rng.choice([0.5, 5.0]), 200), student)

    sanity = TeacherSanity(VOCAB)
    for _ in range(before):
        sanity.observe(step())
    resumed = TeacherSanity(VOCAB)
    resumed.restore(json.loads(json.dumps(sanity.state())))
    for _ in range(30):
        current = step()
        assert sanity.observe(current) == resumed.observe(current)
    assert sanity.state() == resumed.state()
    assert len(sanity.percentiles) <= 20


@few
@given(SEEDS, st.integers(1, 5), st.sampled_from(["sane", "uniform", "constant"]))
def test_several_processes_come_to_the_verdict_of_one(seed, processes, kind):
    rng = np.random.default_rng(seed)
    teacher, student, entropy = sampled(rng, 400, 50, 3.0, 1.0)
    if kind != "sane":
        teacher[:] = -math.log(50) if kind == "uniform" else -1.0
    parts = np.array_split(np.arange(400), processes)
    joined = Figures.joined([figures(teacher[part], student[part], entropy[part], vocab=50) for part in parts])
    whole = figures(teacher, student, entropy, vocab=50)
    assert joined.gaps == whole.gaps
    assert gap_percentile(joined.gaps) == gap_percentile(whole.gaps)
    assert TeacherSanity(50).observe(joined) == TeacherSanity(50).observe(whole)


def test_a_step_without_values_leaves_everything_as_it_was():
    sanity = TeacherSanity(VOCAB)
    sanity.observe(figures(np.full(MIN_ROWS, -1.0)))
    assert sanity.in_a_row == 1
    assert sanity.observe(Figures()) == []
    assert sanity.in_a_row == 1


@few
@given(SEEDS, st.integers(100, 3000))
def test_the_percentile_of_the_bins_is_the_arrays_own_rounded_up(seed, tokens):
    gap = np.random.default_rng(seed).exponential(3.0, tokens)
    own = np.sort(gap)[math.ceil(0.99 * tokens) - 1]
    percentile = gap_percentile(figures(np.zeros(tokens) - gap, np.zeros(tokens)).gaps)
    assert own < percentile * (1 + 1e-6) < 1.05 * own
