"""A teacher service whose weights are random and in memory: `vold-teacher serve` with that backend.

python benchmarks/gpu_parts/serving.py real cuda varlen FOLDER [options of vold-teacher serve]
"""

import ctypes
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import torch
from vold_teacher import cli, server
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.torch import TorchBackend
from vold_teacher.settings import TeacherSettings

from gpu_parts import shapes


def main() -> None:
    if sys.platform == "linux":  # a benchmark that is killed leaves no service that holds the device's memory
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    size, device, attention, folder, *options = sys.argv[1:]

    def make_backend(settings: TeacherSettings, location: str) -> TorchBackend:
        model = shapes.teacher_model(size, torch.device(device))
        limits = DecoderLimits(settings.max_rows, settings.max_cache_tokens, settings.max_batch_tokens)
        return TorchBackend(Path(location), device=device, attention=attention, limits=limits, model=model)

    server.make_backend = make_backend
    cli.app(["serve", "--model", folder, "--http", "none", *options])


if __name__ == "__main__":
    main()
