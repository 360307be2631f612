"""Whether the verifier has what a command will ask of it: the verifiers by name, and their parameters. Known before the
first step, and before the student is loaded.

The verifier itself is asked, with one item for each name and each set of parameters. Their completions are empty, so
that nothing is run, and no judge is called. The verdicts do not matter.
"""

import difflib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vold_client import AsyncVerifierClient, DeadlineExceeded, Item, ResourceExhausted, Unavailable, VoldError

from vold_trainer.config import VerifierConfig
from vold_trainer.errors import UsageError
from vold_trainer.sentences import without_index
from vold_trainer.services.local import Services, verifier_client
from vold_trainer.tasks import ClientTasks

log = logging.getLogger("vold.verifier")

MAX_FAULTS = 5


@dataclass(frozen=True)
class Trial:
    """An item to be tried. name: where the item's verifier is named, for errors. row: the row that names its verifier
    or its parameters; empty if the config does. parameters_in_row: whether the row holds its parameters.
    """

    item: Item
    name: str = "verifier.name"
    row: str = ""
    parameters_in_row: bool = False


@dataclass(frozen=True)
class Fault:
    trial: Trial
    text: str


def check_verifier(
    config: VerifierConfig, services: Services, trials: Sequence[Trial], *, skip_broken: bool = False
) -> None:
    """Raise UsageError if the verifier of `config` does not know a verifier or a parameter of the trials.

    skip_broken: warn of those that rows name, as of rows that are broken in another way.
    """

    async def find() -> list[Fault]:
        async with verifier_client(config, services) as client:
            return await find_faults(client, trials)

    tasks = ClientTasks()
    try:
        faults = tasks.run(find())
    except (Unavailable, DeadlineExceeded, ResourceExhausted) as error:  # for which a run has its own patience
        log.warning("the names and parameters of the verifiers could not be checked: %s", error)
        return
    finally:
        tasks.close()
    stopping = [fault.text for fault in faults if not (skip_broken and fault.trial.row)]
    if stopping:
        more = [f"and {len(stopping) - MAX_FAULTS} more like these"] if len(stopping) > MAX_FAULTS else []
        raise UsageError("\n".join([*stopping[:MAX_FAULTS], *more]))
    for fault in faults:
        log.warning("%s", fault.text)


async def find_faults(client: AsyncVerifierClient, trials: Sequence[Trial]) -> list[Fault]:
    """What the verifier does not know of the trials. Raises VoldError if it cannot be asked."""
    verdicts = await client.verify([trial.item for trial in trials])
    refused = [(trial, verdict.error) for trial, verdict in zip(trials, verdicts, strict=True) if verdict.error]
    known: dict[str, Iterable[str]] = {}
    if any(error.code == "INVALID_ARGUMENT" for _, error in refused):
        known = {info.name: info.parameters_schema.get("properties", {}) for info in await client.list_verifiers()}
    return [Fault(trial, text) for trial, error in refused if (text := _explain(trial, error, known))]


def _explain(trial: Trial, error: VoldError, known: dict[str, Iterable[str]]) -> str:
    """What is wrong with the item's verifier or parameters; empty if something else is, or nothing for good."""
    field, message = without_index(error.field), without_index(error.message)
    url = f" [{error.url}]" if error.url else ""
    if field == "verifier":
        return f"{trial.name} is {trial.item.verifier!r}: {message}{url}"
    if not field.startswith("parameters"):
        return ""
    name = field.removeprefix("parameters").lstrip(".")
    hint = ""
    if name in trial.item.parameters and name not in (names := list(known.get(trial.item.verifier, ()))):
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names) or 'none'}"
        message = f"verifier {trial.item.verifier!r} has no such parameter"
    place = f"{trial.row}, field {field!r}" if trial.parameters_in_row else f"verifier.{field}"
    return f"{place}: {message.removeprefix(f'{field}: ')}{hint}{url}"
