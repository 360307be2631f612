"""What the score cache keeps, what it lets go, and what it does when the disk fails."""

import os
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vold_teacher.engine.cache import ENTRY_OVERHEAD, DiskTier, ScoreCache, fits, score_key
from vold_teacher.types import ScoreOptions, Sequence, SequenceScore

PLAIN = ScoreOptions()


def sequence(prompt=(1, 2), completion=(3, 4), options=PLAIN, candidates=None, counts=None) -> Sequence:
    def ids(values):
        return None if values is None else np.array(values, np.int32)

    return Sequence(ids(prompt), ids(completion), options, ids(candidates), ids(counts))


def score(value: float, positions: int = 2, top_k: int = 0) -> SequenceScore:
    logprobs = np.full(positions, value, np.float32)
    if not top_k:
        return SequenceScore(logprobs)
    return SequenceScore(logprobs, np.zeros((positions, top_k), np.int32), np.zeros((positions, top_k), np.float32))


def test_a_key_tells_apart_whatever_changes_a_score():
    different = [
        sequence(),
        sequence(prompt=(1,), completion=(2, 3, 4)),
        sequence(prompt=(1, 2, 3), completion=(4,)),
        sequence(options=ScoreOptions(temperature=0.5)),
        sequence(options=ScoreOptions(top_k=2)),
        sequence(options=ScoreOptions(entropy=True)),
        sequence(options=ScoreOptions(ranks=True)),
        sequence(candidates=(5, 6), counts=(1, 1)),
        sequence(candidates=(5, 6), counts=(2, 0)),
        sequence(candidates=(6, 5), counts=(1, 1)),
    ]
    different += [replace(sequence(), owner=owner) for owner in ("maths", "group:maths")]
    keys = {score_key(item, b"model") for item in different}
    assert len(keys) == len(different)
    assert score_key(sequence(), b"other model") not in keys
    assert score_key(sequence(), b"model") in keys
    assert score_key(sequence(options=ScoreOptions(hidden_states=True)), b"model") is None


@settings(deadline=None)
@given(uses=st.lists(st.integers(0, 9), max_size=60), entries=st.integers(1, 5))
def test_memory_keeps_the_most_recently_used_within_its_bytes(uses, entries):
    size = ENTRY_OVERHEAD + score(0).logprobs.nbytes
    cache = ScoreCache(entries * size)
    recent: list[int] = []
    for number in uses:
        key = bytes([number])
        found = cache.get(key)
        assert (found is not None) == (number in recent)
        if found is None:
            cache.put(key, score(number))
        else:
            assert found.logprobs[0] == number
        recent = ([other for other in recent if other != number] + [number])[-entries:]
        assert cache.memory_bytes == len(recent) * size
    cache.put(b"large", score(1, positions=10_000))
    assert cache.get(b"large") is None


def test_a_part_of_a_batch_does_not_keep_the_whole_of_it():
    batch = np.zeros((1000, 50), np.float32)
    cache = ScoreCache(1 << 20)
    cache.put(b"part", SequenceScore(batch[:2, 0], top_logprobs=batch[:2, :3]))
    kept = cache.get(b"part")
    assert kept.logprobs.base is None
    assert kept.top_logprobs.base is None
    assert cache.memory_bytes == ENTRY_OVERHEAD + 4 * (2 + 6)


def test_the_disk_keeps_every_array_across_restarts(tmp_path):
    tier = DiskTier(tmp_path, 1 << 20)
    whole = SequenceScore(
        np.array([-1.5, -0.25], np.float32),
        top_ids=np.array([[1, 2], [3, 4]], np.int32),
        top_logprobs=np.array([[-0.1, -2], [-0.3, -4]], np.float32),
        candidate_logprobs=np.array([-7.0], np.float32),
        entropy=np.array([0.5, 0.75], np.float32),
    )
    tier.store({b"whole": whole, b"bare": score(-3)})
    tier.close()
    tier = DiskTier(tmp_path, 1 << 20)
    found = tier.load([b"whole", b"bare", b"absent"])
    tier.close()
    assert found.keys() == {b"whole", b"bare"}
    for name in ("logprobs", "top_ids", "top_logprobs", "candidate_logprobs", "entropy"):
        np.testing.assert_array_equal(getattr(found[b"whole"], name), getattr(whole, name))
    assert found[b"bare"].top_ids is None


def test_a_full_disk_tier_forgets_the_least_recently_used(tmp_path):
    tier = DiskTier(tmp_path, 100_000)
    for number in range(20):
        tier.store({bytes([number]): score(number, positions=2_000)})  # 8 kB each
        tier._writer.submit(int).result()
        assert tier.load([bytes([0])])  # in use all the time
    kept = {key[0] for key in tier.load([bytes([number]) for number in range(20)])}
    tier.close()
    assert 0 in kept
    assert 19 in kept
    assert 1 not in kept
    assert len(kept) <= 12


def test_a_disk_without_room_costs_the_tier_and_no_score(tmp_path, caplog):
    tier = DiskTier(tmp_path, 1 << 30)
    tier.store({b"early": score(-1)})
    tier._writer.submit(int).result()
    pages = tier._connection.execute("PRAGMA page_count").fetchone()[0]
    tier._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to a full disk
    for number in range(5):
        tier.store({bytes([number]): score(number, positions=100_000)})
    tier._writer.submit(int).result()
    assert tier.failures == 5
    assert "full" in caplog.text
    assert len(caplog.records) == 3  # at the 1st, 2nd and 4th, not at every one
    assert tier.load([b"early"])[b"early"].logprobs[0] == -1
    tier._connection.execute("PRAGMA max_page_count = 1000000")
    tier.store({b"late": score(-2)})
    tier._writer.submit(int).result()
    assert tier.load([b"late"])
    tier.close()


def test_what_somebody_else_wrote_into_the_file_is_not_believed(tmp_path):
    tier = DiskTier(tmp_path, 1 << 20)
    other = sqlite3.connect(tmp_path / "scores.sqlite")
    other.execute("INSERT INTO scores VALUES (?, ?, 0)", (b"key", b"rubbish"))
    other.commit()
    other.close()
    assert tier.load([b"key"]) == {}
    assert tier.failures == 1
    tier.close()


def test_a_damaged_row_is_never_a_score(tmp_path):
    tier = DiskTier(tmp_path, 1 << 20)
    tier.store({b"key": score(-1, 40, top_k=2), b"other": score(-2, 40, top_k=2), b"good": score(-3)})
    tier._writer.submit(int).result()
    rows = dict(tier._connection.execute("SELECT key, score FROM scores"))
    whole = rows[b"key"]

    @settings(max_examples=40)
    @given(
        st.one_of(
            st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 255)).map(
                lambda flip: whole[: flip[0]] + bytes([whole[flip[0]] ^ flip[1]]) + whole[flip[0] + 1 :]
            ),
            st.integers(0, len(whole) - 1).map(lambda size: whole[:size]),
            st.binary(max_size=200),
            st.just(rows[b"other"]),
            st.just(whole + b"\0"),
            st.none() | st.integers(-5, 5) | st.text(max_size=20) | st.floats(),
        )
    )
    def damage(row):
        tier._connection.execute("UPDATE scores SET score = ? WHERE key = ?", (row, b"key"))
        assert tier.load([b"key", b"good"]).keys() == {b"good"}

    damage()
    tier.store({b"key": score(-4)})
    tier._writer.submit(int).result()
    assert tier.load([b"key"])[b"key"].logprobs[0] == -4, "computed again, it takes the damaged row's place"
    tier.close()


def test_a_score_of_another_shape_does_not_fit():
    plain = sequence(completion=range(40))
    assert fits(score(-1, 40), plain)
    assert not fits(score(-1, 5), plain)
    assert not fits(score(-1, 40, top_k=2), plain)
    assert not fits(SequenceScore(np.zeros(40, np.float64)), plain)
    with_top = sequence(completion=range(40), options=ScoreOptions(top_k=2))
    assert fits(score(-1, 40, top_k=2), with_top)
    assert not fits(score(-1, 40, top_k=3), with_top)
    assert not fits(score(-1, 40), with_top)
    with_all = sequence(options=ScoreOptions(entropy=True, ranks=True), candidates=(5, 6, 7), counts=(1, 2))
    arrays = {"candidate_logprobs": np.zeros(3, np.float32), "entropy": np.zeros(2, np.float32)}
    assert fits(SequenceScore(np.zeros(2, np.float32), ranks=np.zeros(2, np.int32), **arrays), with_all)
    assert not fits(SequenceScore(np.zeros(2, np.float32), ranks=np.zeros(3, np.int32), **arrays), with_all)
    assert not fits(SequenceScore(np.zeros(2, np.float32), **arrays), with_all)


def other_table(file):
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE scores (anything TEXT)")
    connection.commit()
    connection.close()


def half_a_store(file):
    tier = DiskTier(file.parent, 1 << 20)
    tier.store({bytes([number]): score(-1, 2000) for number in range(40)})
    tier.close()
    file.write_bytes(file.read_bytes()[:9000])


@pytest.mark.parametrize(
    "make",
    [lambda file: file.write_bytes(b"rubbish" * 1000), other_table, half_a_store],
    ids=["rubbish", "another program's", "cut off"],
)
def test_garbage_in_the_place_of_the_file_is_set_aside(make, tmp_path, caplog):
    file = tmp_path / "scores.sqlite"
    make(file)
    (tmp_path / "scores.sqlite-wal").write_bytes(b"a journal of the old file")
    garbage = file.read_bytes()
    for _ in range(2):
        tier = DiskTier(tmp_path, 1 << 20)
        tier.store({b"key": score(-1)})
        tier._writer.submit(int).result()
        assert tier.load([b"key"])
        assert tier.failures == 0
        tier.close()
    assert (tmp_path / "scores.sqlite.damaged").read_bytes() == garbage
    assert caplog.text.count("is no store of scores") == 1


def test_a_folder_that_cannot_be_used_is_a_clear_error(tmp_path):
    (tmp_path / "scores.sqlite").mkdir()
    with pytest.raises(OSError, match="--cache-dir"):
        DiskTier(tmp_path, 1 << 20)
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(OSError, match="closed"):
            DiskTier(tmp_path / "closed", 1 << 20)
