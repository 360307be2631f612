"""Models of the hub: whether a name leads to one, and the hub's failures in words that say what to do."""

from collections.abc import Iterator

from vold_trainer.errors import UsageError

CONFIG = "config.json"
TIMEOUT_SECONDS = 10.0


def require_hub_model(name: str, said: str) -> None:
    """Raise UsageError if the model is not in the hub's cache on this machine and the hub has it not, withholds it or
    cannot be reached.

    One request of at most TIMEOUT_SECONDS, and none for a model in the cache. A hub that is busy passes: who loads the
    model asks again. said: the field and the value that name the model, for the error.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    final = (errors.RepositoryNotFoundError, errors.EntryNotFoundError)
    try:
        if isinstance(try_to_load_from_cache(name, CONFIG), str):
            return
        get_hf_file_metadata(hf_hub_url(name, CONFIG), timeout=TIMEOUT_SECONDS)
    except Exception as error:  # of the hub, of its HTTP client or of the network
        if isinstance(error, errors.HfHubHTTPError) and not isinstance(error, final):
            return
        why = explain_hub_failure(error, name)
        raise UsageError(f"{said}: {why or f'the hub cannot be asked for it ({_reason(error)})'}") from error


def explain_hub_failure(error: BaseException, name: str) -> str | None:
    """Why the hub gave no model `name`, and what to do. None if `error` and its causes are no failures of the hub.

    error: from huggingface_hub, or from transformers, which raises others from it.
    """
    from huggingface_hub import constants, errors

    here = f"there is no folder {name!r} here, and "
    for cause in _causes(error):
        if isinstance(cause, errors.GatedRepoError):
            return (
                f"the hub gives {name!r} only to accounts that its owner let in: ask for access at "
                f"{constants.ENDPOINT}/{name}, and set HF_TOKEN to a token of that account"
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return (
                f"{here}the hub shows no model of this name: mend the name, give a folder that exists, or set HF_TOKEN "
                "if the model is private"
            )
        if isinstance(cause, errors.EntryNotFoundError) and not isinstance(cause, errors.LocalEntryNotFoundError):
            return f"{name!r} on the hub is no model of transformers: it has no {CONFIG}"
        if isinstance(cause, errors.HFValidationError):
            return f"{here}it cannot be a name of the hub, which is OWNER/NAME: give a folder that exists"
        if isinstance(cause, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
            return (
                f"{here}HF_HUB_OFFLINE forbids to ask the hub for it, and the cache {constants.HF_HUB_CACHE} has it "
                f"not: unset HF_HUB_OFFLINE, or run `hf download {name}` where the hub can be reached"
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
    return f"{type(first).__name__}: {text[:200]}" if text else type(first).__name__
