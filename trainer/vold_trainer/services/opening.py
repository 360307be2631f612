"""The rows and the services of a command, opened and checked before what needs torch is imported.

with opening(settings) as opened:
    from vold_trainer.training.train import run_train

    run_train(settings, opened=opened)
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from vold_trainer.config import EvalConfig, TracesConfig, TrainConfig
from vold_trainer.data import Example
from vold_trainer.services.items import verifier_trials
from vold_trainer.services.local import Services, open_services
from vold_trainer.services.verifiers import check_verifier
from vold_trainer.sources import load_examples


@dataclass(frozen=True)
class Opened:
    """sets: the rows of each entry of `data`."""

    sets: tuple[list[Example], ...]
    services: Services


@contextlib.contextmanager
def opening(config: TracesConfig | TrainConfig | EvalConfig) -> Iterator[Opened]:
    """Read the rows, open the services, and ask the verifier whether it has what the config and the rows name.

    Raises UsageError for a row, a service or a verifier.
    """
    data = config.data if isinstance(config.data, list) else [config.data]
    sets = tuple(load_examples(each) for each in data)
    verifier = config.used_verifier

    def check(services: Services) -> None:
        assert verifier is not None
        for each, examples in zip(data, sets, strict=True):
            trials = verifier_trials(examples, verifier.name, verifier.parameters)
            check_verifier(verifier, services, trials, skip_broken=bool(each.skip_broken))

    with open_services(teachers=config.used_scoring_models, verifier=verifier, check_verifier=check) as services:
        yield Opened(sets, services)
