"""With --batch-invariant a completion's scores are the same bits alone and in any company, at any place in the batch.

The teacher is a service of its own: MKL reads its environment before the first product of a process.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import serving
from vold_client import Completion, TeacherClient

FIELDS = ("logprobs", "top_ids", "top_logprobs", "candidate_logprobs", "entropy", "hidden_states")
VOCABULARY = 100


@pytest.fixture(scope="module")
def client():
    from vold_trainer.pocket.shipped import checkpoint_path

    options = ("--batch-invariant", "--cache-bytes", "0", "--threads", "1")
    with serving("teacher", "--model", str(checkpoint_path("teacher")), *options) as server:
        client = TeacherClient(server.grpc)
        yield client
        client.close()


def ids(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, length]).integers(3, VOCABULARY, length)


lengths = st.integers(1, 70)


def completion(prompt: int, seed: int, length: int) -> Completion:
    return Completion(prompt, ids(seed, length), ids(seed + 1, 3 * length).reshape(length, 3))


@settings(max_examples=25)
@given(
    prompt=lengths,
    length=lengths,
    others=st.lists(st.tuples(st.booleans(), lengths, lengths), max_size=12),
    place=st.integers(0, 12),
)
def test_a_score_is_the_same_bits_alone_and_in_any_company(client, prompt, length, others, place):
    prompts, target = [ids(0, prompt)], completion(0, 1, length)

    def scored(completions: list[Completion], position: int):
        return client.score(prompts, completions, top_k=4, entropy=True, hidden_states=True).scores[position]

    alone = scored([target], 0)
    company = []
    for number, (mate, other_prompt, other_length) in enumerate(others):
        if not mate:
            prompts.append(ids(2 + number, other_prompt))
        company.append(completion(0 if mate else len(prompts) - 1, 20 + number, other_length))
    place = min(place, len(company))
    score = scored([*company[:place], target, *company[place:]], place)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(score, field), getattr(alone, field), err_msg=field)
