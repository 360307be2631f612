"""What is run before a teacher is called ready."""

import pytest
import torch
from teacher_fixtures import save_model
from vold_service.errors import ServiceError, unavailable
from vold_teacher.backends.base import ScoredBatch
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.torch import TorchBackend
from vold_teacher.engine.warmup import warm_up


class Watched(TorchBackend):
    """The torch backend, with a note of what went through it."""

    def score(self, sequences):
        batch = super().score(sequences)
        self.batches = [*getattr(self, "batches", []), batch]
        return batch

    def decoder(self):
        self.decoding = super().decoder()
        return self.decoding


class Broken(TorchBackend):
    def score(self, sequences):
        return ScoredBatch([unavailable("no upstream answers")] * len(sequences), 0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save_model(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.mark.parametrize("max_sequence", [None, 2, 3])
def test_a_batch_and_a_decode_step_go_through_the_model(folder, max_sequence):
    backend = Watched(folder, max_sequence=max_sequence, limits=DecoderLimits())
    assert warm_up(backend) > 0
    (batch,) = backend.batches
    assert all(score.logprobs.size for score in batch.scores)
    assert backend.decoding.computed_tokens > 0
    assert not backend.decoding.busy


def test_a_model_that_cannot_score_is_not_called_ready(folder):
    with pytest.raises(ServiceError, match="no upstream answers"):
        warm_up(Broken(folder, limits=DecoderLimits()))
