"""What sequences share, found without being told."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from vold_teacher.openai.sharing import MIN_GROUP_SIZE, MIN_SHARED_TOKENS, shared_prefix_lengths


@given(
    groups=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_a_shared_part_is_the_same_in_its_whole_group(groups, seed):
    rng = np.random.default_rng(seed)
    sequences = []
    for shared, members, rest in groups:
        prompt = rng.integers(0, 5, shared)
        sequences += [np.append(prompt, rng.integers(0, 5, rest)).astype(np.int32) for _ in range(members)]
    order = rng.permutation(len(sequences))
    sequences = [sequences[index] for index in order]
    lengths = shared_prefix_lengths(sequences)
    heads: dict[bytes, int] = {}
    for ids, length in zip(sequences, lengths, strict=True):
        assert 1 <= length <= len(ids)
        if length > 1:
            assert length >= MIN_SHARED_TOKENS
            head = ids[:length].tobytes()
            heads[head] = heads.get(head, 0) + 1
    assert all(members >= MIN_GROUP_SIZE for members in heads.values())


def test_groups_of_rollouts_are_found():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 1000, 30 + 10 * index) for index in range(4)]
    sequences = [np.append(prompt, rng.integers(0, 1000, 20)).astype(np.int32) for prompt in prompts for _ in range(8)]
    order = rng.permutation(32)
    lengths = shared_prefix_lengths([sequences[index] for index in order])
    assert all(abs(length - len(prompts[index // 8])) <= 1 for length, index in zip(lengths, order, strict=True))
    alone = [rng.integers(0, 1000, 40).astype(np.int32) for _ in range(5)]
    assert shared_prefix_lengths([*alone, sequences[0], sequences[1]]) == [1] * 7
