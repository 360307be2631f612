"""Models and data sets of the hub: whether a name leads to one, and the hub's failures in words that say what to do."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from vold_trainer.errors import UsageError

Kind = Literal["model", "dataset"]
_WORDS: dict[Kind, tuple[str, str, str, str]] = {
    "model": ("model", "folder", "", ""),
    "dataset": ("data set", "file and no folder", "datasets/", " --repo-type dataset"),
}
"""What it is called, what it may be besides, its pages at the hub, and the option of `hf download`."""
CONFIG = "config.json"
TIMEOUT_SECONDS = 10.0


def require_hub_model(name: str, said: str) -> None:
    """Raise UsageError if the model is not in the hub's cache on this machine and the hub has it not, withholds it or
    cannot be reached.

    One request of at most TIMEOUT_SECONDS, and none for a model in the cache. A hub that is busy passes: who loads the
    model asks again. said: the field and the value that name the model, for the error.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, CONFIG), str):
            return
    except ValueError:  # no name of the hub, which says so below
        pass
    _require(name, said, "model", CONFIG)


def require_hub_dataset(name: str, said: str) -> None:
    """Raise UsageError if the data set is not in a cache on this machine and the hub has it not, withholds it or cannot
    be reached. One request, as for a model.
    """
    from huggingface_hub import constants

    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    folders = [*prepared.glob("*"), *Path(constants.HF_HUB_CACHE).glob("datasets--*")]
    if _letters(name) in {_letters(folder.name.removeprefix("datasets--")) for folder in folders}:
        return
    _require(name, said, "dataset", ".gitattributes")


def _letters(name: str) -> str:
    """The name without what the caches spell in other ways."""
    return "".join(filter(str.isalnum, name.lower()))


def _require(name: str, said: str, kind: Kind, file: str) -> None:
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    final = (errors.RepositoryNotFoundError, errors.EntryNotFoundError)
    try:
        get_hf_file_metadata(hf_hub_url(name, file, repo_type=kind), timeout=TIMEOUT_SECONDS)
    except Exception as error:  # of the hub, of its HTTP client or of the network
        if isinstance(error, errors.HfHubHTTPError) and not isinstance(error, final):
            return
        if kind == "dataset" and isinstance(error, errors.EntryNotFoundError):
            return
        why = explain_hub_failure(error, name, kind)
        raise UsageError(f"{said}: {why or f'the hub cannot be asked for it ({_reason(error)})'}") from error


def explain_hub_failure(error: BaseException, name: str, kind: Kind = "model") -> str | None:
    """Why the hub gave no model or data set `name`, and what to do. None if `error` and its causes are no failures of
    the hub.

    error: from huggingface_hub, or from transformers, which raises others from it.
    """
    from huggingface_hub import constants, errors

    what, folder, page, option = _WORDS[kind]
    here = f"there is no {folder} {name!r} here, and "
    for cause in _causes(error):
        if isinstance(cause, errors.GatedRepoError):
            return (
                f"the hub gives {name!r} only to accounts that its owner let in: ask for access at "
                f"{constants.ENDPOINT}/{page}{name}, and set HF_TOKEN to a token of that account"
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return (
                f"{here}the hub shows no {what} of this name: mend the name, give a folder that exists, or set "
                "HF_TOKEN if it is private"
            )
        if isinstance(cause, errors.EntryNotFoundError) and not isinstance(cause, errors.LocalEntryNotFoundError):
            return f"{name!r} on the hub is no model of transformers: it has no {CONFIG}"
        if isinstance(cause, errors.HFValidationError):
            return f"{here}it cannot be a name of the hub, which is OWNER/NAME: give a folder that exists"
        if isinstance(cause, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
            return (
                f"{here}HF_HUB_OFFLINE forbids to ask the hub for it, and the cache {constants.HF_HUB_CACHE} has it "
                f"not: unset HF_HUB_OFFLINE, or run `hf download {name}{option}` where the hub can be reached"
            )
        if _is_of_network(cause) or isinstance(cause, errors.LocalEntryNotFoundError | errors.HfHubHTTPError):
            return (
                f"{here}the hub {constants.ENDPOINT} does not give it ({_reason(error)}): check the connection, or "
                "give a folder that exists"
            )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_of_network(error: BaseException) -> bool:
    """Whether the error is of an HTTP client. huggingface_hub has used httpx, httpx2 and requests."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests")


def _reason(error: BaseException) -> str:
    """The first cause's message in a line, which is the most precise."""
    *_, first = _causes(error)
    text = str(first).strip().splitlines()[0] if str(first).strip() else ""
    text = re.sub(r"header value .*", "header value: HF_TOKEN is no token", text)  # which would follow
    return f"{type(first).__name__}: {text[:200]}" if text else type(first).__name__
