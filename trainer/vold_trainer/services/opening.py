"""The rows and the services of a command, opened and checked before what needs torch is imported.

with opening(settings) as opened:
    from vold_trainer.training.train import run_train

    run_train(settings, opened=opened)
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vold_trainer.config import DataConfig, EvalConfig, TracesConfig, TrainConfig
from vold_trainer.data import Example
from vold_trainer.data.spool import SpooledExamples
from vold_trainer.paths import nearest_folder
from vold_trainer.services.items import verifier_trials
from vold_trainer.services.local import Services, open_services
from vold_trainer.services.verifiers import check_verifier
from vold_trainer.sources import each_example, load_examples


@dataclass(frozen=True)
class Opened:
    """sets: the rows of each entry of `data`."""

    sets: tuple[Sequence[Example], ...]
    services: Services


@contextlib.contextmanager
def opening(config: TracesConfig | TrainConfig | EvalConfig) -> Iterator[Opened]:
    """Read the rows, open the services, and ask the verifier whether it has what the config and the rows name. The rows
    of `vold traces`, which are many and each needed once, are on disk.

    Raises UsageError for a row, a service or a verifier.
    """
    data = config.data if isinstance(config.data, list) else [config.data]
    with contextlib.ExitStack() as stack:

        def load(each: DataConfig) -> Sequence[Example]:
            if not isinstance(config, TracesConfig):
                return load_examples(each)
            rows = SpooledExamples(each_example(each), nearest_folder(config.out.parent))
            return stack.enter_context(contextlib.closing(rows))

        yield stack.enter_context(_opening(config, data, tuple(map(load, data))))


@contextlib.contextmanager
def _opening(
    config: TracesConfig | TrainConfig | EvalConfig, data: Sequence[DataConfig], sets: tuple[Sequence[Example], ...]
) -> Iterator[Opened]:
    verifier = config.used_verifier

    def check(services: Services) -> None:
        assert verifier is not None
        for each, examples in zip(data, sets, strict=True):
            trials = verifier_trials(examples, verifier.name, verifier.parameters)
            check_verifier(verifier, services, trials, skip_broken=bool(each.skip_broken))

    with open_services(teachers=config.used_scoring_models, verifier=verifier, check_verifier=check) as services:
        yield Opened(sets, services)
