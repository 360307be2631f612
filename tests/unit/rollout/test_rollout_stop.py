"""What ends a completion besides the student's EOS, and what is never sampled."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vold_trainer.config import StudentConfig
from vold_trainer.errors import UsageError
from vold_trainer.pocket.world import make_examples
from vold_trainer.rollout.hf import generate
from vold_trainer.rollout.stop import Stop, TextStops, read_stop
from vold_trainer.student.models import load_student


@pytest.fixture(scope="module")
def pocket():
    return load_student(StudentConfig(path="pocket:student"))


@pytest.fixture(scope="module")
def of_bytes():
    """A byte-level tokenizer like Qwen's, whose tokens are bytes and pairs of them, and two special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("Ã", "¼"), ("<", "/"), ("s", "w"), ("e", "r"), ("l", "o")]
    words = [*letters, *("".join(pair) for pair in pairs)]
    core = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in ("<|end|>", "<|box|>")])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")


def first_with(rollout, stop: Stop, student) -> int | None:
    """The length at which a completion contains one of the texts or ends with one of the ids."""
    for length in range(1, len(rollout.ids) + 1):
        text = student.tokenizer.decode(rollout.ids[:length], skip_special_tokens=True)
        if rollout.ids[length - 1] in stop.ids or any(each in text for each in stop.texts):
            return length
    return None


def test_a_completion_ends_with_the_token_that_completes_a_text_or_is_an_id(pocket):
    examples = make_examples("train", 3, modality="text", seed=0)
    plain = generate(pocket, examples, group=2, max_tokens=16, seed=5, logprobs=True)
    texts, token = (plain[0].text[4:7], plain[1].text[6:8]), plain[2].ids[5]
    for stop in (Stop(texts=texts), Stop(ids=(token,)), Stop(ids=(token,), texts=texts)):
        stopped = generate(pocket, examples, group=2, max_tokens=16, seed=5, stop=stop, logprobs=True)
        lengths = [first_with(rollout, stop, pocket) for rollout in plain]
        assert any(lengths), stop
        for before, after, length in zip(plain, stopped, lengths, strict=True):
            assert after.ids == before.ids[:length]
            assert after.truncated == (before.truncated and length is None)
            assert after.text == pocket.tokenizer.decode(after.ids, skip_special_tokens=True)
            # The others in the batch leave it earlier or later, which moves last digits.
            assert after.logprobs == pytest.approx(before.logprobs[:length], abs=1e-4)


@given(st.lists(st.integers(0, 262), max_size=60), st.data())
@settings(max_examples=60)
def test_a_text_is_found_at_the_token_that_completes_it_whatever_bytes_tokens_have(of_bytes, ids, data):
    """Byte-level tokens end within characters, and special tokens have no text."""
    end = of_bytes.eos_token_id
    ids = [*ids, *of_bytes("Grüße, 你好! </answer>", add_special_tokens=False)["input_ids"], end, *ids[:5]]
    whole = of_bytes.decode(ids, skip_special_tokens=True)
    start = data.draw(st.integers(0, len(whole) - 1))
    texts = [text for text in (whole[start : start + 7], "</answer>", "üße") if "\ufffd" not in text]
    stops = TextStops(texts, of_bytes)
    for length in range(1, len(ids) + 1):
        (found,) = stops.ended([ids[:length]])
        if found:
            break
    shortest = next(
        n for n in range(1, len(ids) + 1)
        if any(text in of_bytes.decode(ids[:n], skip_special_tokens=True) for text in texts)
    )  # fmt: skip
    assert length == shortest


def test_an_entry_that_could_never_end_a_completion_is_refused(pocket):
    read = lambda *stop: read_stop(stop, pocket.tokenizer, pocket.vocab_size, "rollout.stop")  # noqa: E731
    assert read("</answer>", 7) == Stop((7,), ("</answer>",))
    with pytest.raises(UsageError, match=r"rollout.stop: .*special token '<\|im_end\|>'.* give its id, 2"):
        read("done<|im_end|>")
    for token in (-1, pocket.vocab_size):
        with pytest.raises(UsageError, match=f"rollout.stop: {token} is no id of the student"):
            read(token)


def test_rows_of_the_vocabulary_without_a_token_are_never_sampled(pocket):
    """As padding to a multiple of 64 leaves them: the student may have any logits there."""
    padded = load_student(StudentConfig(path="pocket:student", freeze=[]))
    model = padded.model
    rows = pocket.vocab_size + 8
    model.resize_token_embeddings(rows, mean_resizing=False)
    padded = replace(padded, vocab_size=rows)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[pocket.vocab_size :] = 3 * head.weight[: pocket.vocab_size].mean(0)
    assert set(range(rows - 8, rows)) <= set(padded.banned_ids)
    assert pocket.banned_ids == pocket.placeholder_ids, "a student without such rows samples as before"
    examples = make_examples("train", 4, modality="text", seed=0)
    for temperature in (0.0, 3.0):
        for rollout in generate(padded, examples, group=4, max_tokens=16, temperature=temperature, candidates=4):
            assert max(rollout.ids) < pocket.vocab_size
            assert rollout.candidates.max() < pocket.vocab_size
