"""Limits of the teacher, taken from lengths before anything is unpacked, and from tenants; and the accounts."""

from dataclasses import replace

import pytest
from vold_proto.arrays import pack_ids
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call
from vold_service.errors import Code, ServiceError
from vold_service.keys import Grant
from vold_service.tenants import Tenant
from vold_service.usage import EARLIER_RUNS, MAX_RUNS, Counts, Usage
from vold_teacher import validation
from vold_teacher.backends.base import Capabilities
from vold_teacher.types import ScoreOptions
from vold_teacher.validation import Limits, check_count, count_sent_tokens, read_sequences

LIMITS = Limits(100, 8, 10, 2, 4, Capabilities(), "torch")


def request(prompt: list[int], **completion: object) -> pb.ScoreRequest:
    return pb.ScoreRequest(
        prompts=[pb.Prompt(ids=pack_ids(prompt))],
        completions=[pb.Completion(**({"ids": pack_ids([1, 2])} | completion))],
    )


@pytest.fixture
def unpacked(monkeypatch):
    """Bytes of the arrays that were unpacked."""
    sizes: list[int] = []

    def unpack(data: bytes):
        sizes.append(len(data))
        return pack(data)

    pack = validation.unpack_ids
    monkeypatch.setattr(validation, "unpack_ids", unpack)
    return sizes


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        (request([1] * 9), "prompts[0].ids", "has 9 tokens: the teacher takes at most 8"),
        (request([1], ids=pack_ids([1] * 9)), "completions[0].ids", "has 9 tokens: the teacher takes at most 8"),
        (
            request([1], candidates=pb.Candidates(ids=pack_ids([1] * 5), per_position=2)),
            "completions[0].candidates.ids",
            "has 5 ids: there is room for 4",
        ),
        (
            request([1], candidates=pb.Candidates(ids=pack_ids([1]), counts=pack_ids([1] * 3))),
            "completions[0].candidates.counts",
            "has 3 entries for 2 completion positions",
        ),
    ],
)
def test_what_is_too_long_is_not_unpacked(asked, field, words, unpacked):
    longest = max(
        [len(asked.prompts[0].ids)]
        + [len(c) for c in (asked.completions[0].ids, *(asked.completions[0].candidates.ids,))]
        + [len(asked.completions[0].candidates.counts)]
    )
    _, errors = read_sequences(asked, ScoreOptions(), LIMITS)
    assert errors[0].field == field
    assert words in errors[0].message
    assert max(unpacked, default=0) < longest


@pytest.mark.parametrize(("count", "words"), [(0, "is empty"), (5, "has 5 entries: this server takes at most 4")])
def test_the_number_of_sequences(count, words):
    with pytest.raises(ServiceError, match=words) as caught:
        check_count("completions", count, LIMITS)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, "completions")
    check_count("completions", 4, LIMITS)


def test_a_tenants_longest_sequence_counts_where_it_is_less_than_the_models():
    short = LIMITS.for_tenant(Tenant("maths", max_sequence=4))
    assert (short.max_sequence, short.tenant) == (4, "maths")
    assert LIMITS.for_tenant(Tenant("maths", max_sequence=9)) == LIMITS
    assert LIMITS.for_tenant(Tenant("maths")) == LIMITS
    _, errors = read_sequences(request([1, 2, 3]), ScoreOptions(), short)
    assert "the tenant 'maths' may send at most 4" in errors[0].message


def test_a_request_is_charged_for_what_was_sent_and_is_fit_to_be_scored():
    asked = request([1, 2, 3])
    asked.prompts.add(ids=pack_ids([1] * 4))
    asked.prompts.add(ids=pack_ids([1] * 5))
    asked.completions.add(prompt=0, ids=pack_ids([1]))
    asked.completions.add(prompt=1, ids=pack_ids([1]))
    asked.completions.add(prompt=2, ids=pack_ids([1000]))
    sequences, errors = read_sequences(asked, ScoreOptions(), replace(LIMITS, max_sequences=9))
    assert set(errors) == {3}
    assert count_sent_tokens(asked, sequences) == (3 + 2 + 1) + (4 + 1)


def test_the_keys_run_wins_over_the_messages_and_the_headers():
    maths = Tenant("maths")
    bound, free = Grant(maths, "of-key"), Grant(maths)
    assert Call.start(run_id="header", grant=bound).with_ids("", "message").run_id == "of-key"
    assert Call.start(run_id="header", grant=free).with_ids("", "message").run_id == "message"
    assert Call.start("id", run_id="header", grant=free).with_ids("", "").run_id == "header"
    call = Call.start("header", grant=bound)
    assert (call.with_ids("message", "").request_id, call.with_ids("", "").request_id) == ("message", "header")
    assert call.with_ids("", "").tenant is maths


def test_a_call_keeps_the_earlier_of_two_deadlines():
    stream = Call.start(timeout_seconds=100)
    assert stream.with_timeout(None).deadline == stream.deadline
    assert stream.with_timeout(1000).deadline == stream.deadline
    assert 0 < (stream.with_timeout(5).remaining() or 0) <= 5
    assert Call.start().with_timeout(None).deadline is None


def test_accounts_are_bounded_and_nothing_is_lost():
    usage = Usage()
    maths, other = Grant(Tenant("maths")), Grant(Tenant("other"))
    for run in range(MAX_RUNS + 50):
        usage.add(Call.start(run_id=f"run-{run}", grant=maths), Counts(requests=1, scored_tokens=run))
        usage.add(Call.start(run_id="run-0", grant=maths), Counts(requests=1))
    usage.add(Call.start(grant=other), Counts(queue_seconds=0.5))
    rows = {run: counts for _, run, counts in usage.rows("maths")}
    assert len(rows) == MAX_RUNS
    assert rows["run-0"].requests == MAX_RUNS + 51  # the one in use stays
    assert rows[EARLIER_RUNS].requests > 0
    assert sum(counts.requests for counts in rows.values()) == 2 * (MAX_RUNS + 50)
    assert sum(counts.scored_tokens for counts in rows.values()) == sum(range(MAX_RUNS + 50))
    assert usage.rows("other") == [("other", "", Counts(queue_seconds=0.5))]
    assert {tenant for tenant, _, _ in usage.rows()} == {"maths", "other"}
