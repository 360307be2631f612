"""Unfinished traces on disk: whatever the order of the answers and wherever a kill cuts the file, what is complete
stays, and the end is the same file.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vold_trainer.coldstart.journal import (
    ACCEPTED,
    ANSWERED,
    DROPPED,
    MISSING,
    Entry,
    Journal,
    kept_samples,
    partial_path,
    read_header,
)
from vold_trainer.errors import RunError, UsageError

ROWS, SAMPLES = 4, 3
HEADER = {"config": {"seed": 1}, "rows": "digest"}
ITEMS = [(row, sample) for row in range(ROWS) for sample in range(SAMPLES)]
STATES = st.lists(st.sampled_from([ACCEPTED, DROPPED]), min_size=len(ITEMS), max_size=len(ITEMS))


def trace_of(row: int, sample: int) -> bytes:
    return json.dumps({"id": f"{row}-{sample}", "completion": f"a\tb\n{row * 7} {'x' * sample}"}).encode()


def entries_of(states: list[int]) -> list[Entry]:
    """An answer and its verdict for every sample; tokens are such that the middle sample is the shortest."""
    made = []
    for (row, sample), state in zip(ITEMS, states, strict=True):
        tokens = [5, 2, 2][sample]
        made.append(Entry(row, sample, ANSWERED, tokens=tokens, trace=trace_of(row, sample)))
        made.append(Entry(row, sample, state, reason="" if state == ACCEPTED else "wrong", said="why"))
    return made


def finished(path, keep: str) -> bytes:
    journal = Journal(path, HEADER, ROWS, SAMPLES)
    list(journal.resume())
    out = path.with_name("out.jsonl")
    assert journal.finish(out, kept_samples(journal, keep)) == len(out.read_bytes().splitlines())
    assert not path.exists()
    return out.read_bytes()


@settings(max_examples=40)
@given(
    STATES,
    st.randoms(use_true_random=False),
    st.floats(0, 1),
    st.sampled_from(["all", "shortest-correct", "first-correct"]),
)
def test_the_file_is_the_same_whatever_the_order_and_wherever_it_was_cut(tmp_path_factory, states, random, cut, keep):
    folder = tmp_path_factory.mktemp("journal")
    entries = entries_of(states)
    plain = Journal(folder / "plain.partial", HEADER, ROWS, SAMPLES)
    plain.begin()
    for entry in entries:
        plain.add(entry)
    plain.close()
    expected = [
        (row, sample)
        for row in range(ROWS)
        for accepted in [[s for s in range(SAMPLES) if states[row * SAMPLES + s] == ACCEPTED]]
        for sample in {
            "all": accepted,
            "first-correct": accepted[:1],
            "shortest-correct": [min(accepted, key=lambda s: [5, 2, 2][s])] if accepted else [],
        }[keep]
    ]
    shuffled = Journal(folder / "shuffled.partial", HEADER, ROWS, SAMPLES)
    shuffled.begin()
    pairs = [entries[index : index + 2] for index in range(0, len(entries), 2)]
    random.shuffle(pairs)
    for entry in (entry for pair in pairs for entry in pair):
        shuffled.add(entry)
    shuffled.close()
    content = shuffled.path.read_bytes()
    first = content.index(b"\n") + 1
    shuffled.path.write_bytes(content[: first + round(cut * (len(content) - first))])
    again = Journal(shuffled.path, HEADER, ROWS, SAMPLES)
    list(again.resume())
    for row, sample in np.argwhere(again.state_RS != MISSING).tolist():
        assert again.trace(row, sample) == json.loads(trace_of(row, sample))
    for answer, verdict in (entries[index : index + 2] for index in range(0, len(entries), 2)):
        if again.state_RS[answer.row, answer.sample] == MISSING:
            again.add(answer)
        if again.state_RS[answer.row, answer.sample] == ANSWERED:
            again.add(verdict)
    again.close()
    result = finished(shuffled.path, keep)
    assert result == finished(plain.path, keep) == b"".join(trace_of(*item) + b"\n" for item in expected)


def test_what_was_said_comes_back(tmp_path):
    journal = Journal(partial_path(tmp_path / "t.jsonl"), HEADER, ROWS, SAMPLES)
    journal.begin()
    journal.add(Entry(2, 1, DROPPED, reason="teacher: InvalidArgument", said="too long"))
    journal.add(Entry(0, 0, ACCEPTED, tokens=-9, trace=trace_of(0, 0)))
    journal.close()
    assert read_header(journal.path) == HEADER
    again = Journal(journal.path, HEADER, ROWS, SAMPLES)
    dropped, accepted = again.resume()
    assert (dropped.reason, dropped.said, dropped.trace) == ("teacher: InvalidArgument", "too long", None)
    assert accepted.tokens == again.tokens_RS[0, 0] == -9
    assert again.trace(0, 0) == json.loads(trace_of(0, 0))
    again.close()


@pytest.mark.parametrize(
    "line", [b"{}", b"no JSON", b'{"row": 9, "sample": 0, "state": 2}', b'{"row": 0, "sample": 0, "state": 7}', b"\xff"]
)
def test_a_line_of_another_kind_is_named(tmp_path, line):
    journal = Journal(tmp_path / "t.partial", HEADER, ROWS, SAMPLES)
    journal.begin()
    journal.close()
    with journal.path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(
        UsageError, match=r"t\.partial:2 is no line of unfinished traces .* \(head -n 1\), or begin anew"
    ):
        list(Journal(journal.path, HEADER, ROWS, SAMPLES).resume())


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b"[1]\n", b'{"vold_traces": 99}\n', b'{"vold_traces": 1}', b"\xff\n"]
)
def test_a_file_of_another_kind_is_no_journal(tmp_path, content):
    (tmp_path / "t.partial").write_bytes(content)
    with pytest.raises(UsageError, match=r"t\.partial is no file of unfinished traces"):
        read_header(tmp_path / "t.partial")


def test_a_full_disk_is_an_error_that_says_how_to_go_on():
    journal = Journal(Path("/dev/full"), HEADER, ROWS, SAMPLES)
    with pytest.raises(RunError, match=r"No space left on device\): make room, and go on with --resume"):
        journal.begin()


def test_the_size_is_bounded_before_it_is_taken(tmp_path):
    with pytest.raises(UsageError, match="samples is 1000 of 1,000,000 rows"):
        Journal(tmp_path / "t", HEADER, 1_000_000, 1000)
