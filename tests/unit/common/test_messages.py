"""Messages whose fields cannot be too many are not counted; the bound of repeated numbers holds for all."""

import asyncio

import pytest
from vold_proto.v1 import teacher_pb2, verifier_pb2
from vold_service.errors import ServiceError
from vold_service.messages import MAX_PACKED_BYTES, parse_message

MAX_FIELDS = 1 << 18


def parse(kind, data: bytes, max_fields: int = MAX_FIELDS):
    return asyncio.run(parse_message(kind, data, max_fields))


def test_repeated_numbers_are_bounded_also_where_the_fields_cannot_be_too_many():
    options = teacher_pb2.GenerateOptions()
    options.stop_ids.extend([1] * (MAX_PACKED_BYTES + 1))
    data = teacher_pb2.GenerateRequest(options=options).SerializeToString()
    assert len(data) < 2 * MAX_FIELDS
    with pytest.raises(ServiceError, match="bytes of numbers"):
        parse(teacher_pb2.GenerateRequest, data)


@pytest.mark.parametrize("items", [1000, 60_000])
def test_a_message_has_at_most_the_fields_that_are_allowed(items):
    data = verifier_pb2.VerifyRequest(items=[verifier_pb2.VerifyItem(id="a") for _ in range(items)]).SerializeToString()
    assert len(parse(verifier_pb2.VerifyRequest, data, 2 * items).items) == items
    if len(data) > 1 << 16:
        with pytest.raises(ServiceError, match="more than"):
            parse(verifier_pb2.VerifyRequest, data, 2 * items - 1)
