"""Whether the files and folders that a config names are there: known in a moment, and before anything is loaded."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from vold_trainer.config import (
    OF_TEACHER,
    OPENAI_SCHEMES,
    Config,
    DataConfig,
    EvalConfig,
    RunConfig,
    ScoringModelConfig,
    SftConfig,
    StudentConfig,
    TlsConfig,
    TracesConfig,
    TrainConfig,
    VerifierConfig,
    teacher_key,
)
from vold_trainer.data.columns import Columns
from vold_trainer.data.traces import TRACE_FIELD_COLUMNS
from vold_trainer.errors import UsageError
from vold_trainer.hub import require_hub_model
from vold_trainer.launch import is_local_main_process, is_main_process
from vold_trainer.paths import is_evident_path, require_file, require_model_folder, require_writable
from vold_trainer.pocket.shipped import resolve_model
from vold_trainer.sources.examples import check_source

STUDENTS_BESIDE_FOLDERS = "OWNER/NAME of a model of the hub, or pocket:NAME"
TEACHERS_BESIDE_FOLDERS = "local:pocket:teacher"


def check_files(config: Config) -> None:
    """Check every file, folder and model that the config of a command names. Raises UsageError with a line for each
    that is not there.

    A model of the hub that this machine has not got costs one request; data sets of the hub are not asked for.
    """
    faults = []
    for check in _checks(config):
        try:
            check()
        except UsageError as error:
            faults.append(str(error))
    if faults:
        raise UsageError("\n".join(faults))


def check_student(config: StudentConfig) -> None:
    """Raise UsageError if there is no model at the student's path: no folder, and none of the hub."""
    path, said = resolve_model(config.path), f"student.path {config.path!r}"
    if is_evident_path(path):
        require_model_folder(path, said, STUDENTS_BESIDE_FOLDERS)
    elif is_local_main_process():  # the processes of a machine share the hub's cache
        require_hub_model(path, said)


def check_added_tokens(config: StudentConfig) -> None:
    """Raise UsageError if the tokens of `student.add_tokens` are to come from a file that is not there."""
    named = config.add_tokens
    if not isinstance(named, str) or named == OF_TEACHER or not is_evident_path(resolve_model(named)):
        return
    path = Path(resolve_model(named))
    file = path / "tokenizer.json" if path.is_dir() else path
    require_file(file, "student.add_tokens", "give the folder or the file of a tokenizer.json")


def check_traces(config: SftConfig | TrainConfig) -> None:
    """Raise UsageError if the file of completions that a run trains on does not exist, or a field that is mapped."""
    remedy = "give a file that `vold traces` wrote, or JSONL or Parquet like it"
    if isinstance(config, SftConfig):
        Columns(config.columns, TRACE_FIELD_COLUMNS, key="columns")
        require_file(config.traces, "traces", remedy)
        if config.validation.file is not None:
            require_file(config.validation.file, "validation.file", remedy)
    elif config.objective.needs.traces:
        require_file(Path(str(getattr(config.objective, "traces", None))), "objective.traces", remedy)


def _checks(config: Config) -> Iterator[Callable[[], None]]:
    if isinstance(config, RunConfig | EvalConfig):
        yield partial(check_student, config.student)
        yield partial(check_added_tokens, config.student)
    if isinstance(config, SftConfig | TrainConfig):
        yield partial(check_traces, config)
    for data in _data(config):
        yield partial(check_source, data)
    for key, teacher in _teachers(config).items():
        if isinstance(config, TracesConfig) and config.from_openai:
            yield partial(check_openai_urls, teacher.url, f"{key}.url")
        else:
            yield partial(check_service_urls, teacher.url, f"{key}.url", teacher=True)
        yield partial(_check_tls, teacher.tls, key)
        yield partial(_check_key_file, teacher.api_key_file, key)
    verifier = getattr(config, "verifier", None)
    if isinstance(verifier, VerifierConfig):
        yield partial(check_service_urls, verifier.url, "verifier.url")
        yield partial(_check_tls, verifier.tls, "verifier")
        yield partial(_check_key_file, verifier.api_key_file, "verifier")
    if is_main_process():  # which alone writes
        if isinstance(config, RunConfig | EvalConfig):
            yield partial(require_writable, config.out, "out", config.out)
        elif isinstance(config, TracesConfig):
            yield partial(_check_traces_file, config.out)


def _data(config: Config) -> list[DataConfig]:
    data = getattr(config, "data", None)
    return data if isinstance(data, list) else [data] if isinstance(data, DataConfig) else []


def _teachers(config: Config) -> dict[str, ScoringModelConfig]:
    """The teachers and the reference that the command calls, by their key."""
    if isinstance(config, TracesConfig):
        return {"teacher": config.teacher}
    if not isinstance(config, TrainConfig):
        return {}
    return {teacher_key(name): teacher for name, teacher in config.used_scoring_models.items()}


def listed_urls(urls: str | list[str]) -> list[str]:
    parts = urls.split(",") if isinstance(urls, str) else urls
    return [url.strip() for url in parts if url.strip()]


def check_service_urls(urls: str | list[str], field: str, *, teacher: bool = False) -> None:
    """Raise UsageError if one of a service's URLs is none that the client takes, or names a local teacher's model that
    is not there.
    """
    listed = listed_urls(urls)
    if found := next((url for url in listed if url.startswith(OPENAI_SCHEMES)), None):
        raise UsageError(
            f"{field}: {found!r} gives text and no log-probabilities, so that it is a source of `vold traces` alone: "
            "give the URL of a service of vold"
        )
    local = [url for url in listed if url.startswith("local:")]
    if teacher:
        for url in local:
            local_model(url, field)
    if listed and len(local) == len(listed):
        return
    from vold_client import InvalidArgument  # gRPC with it: for whoever calls other services than its own
    from vold_client.urls import parse_urls

    try:
        parse_urls(",".join(url for url in listed if url not in local))
    except InvalidArgument as error:
        raise UsageError(f"{field}: {error.message}; local: starts a service here") from error


def check_openai_urls(urls: str | list[str], field: str) -> None:
    """Raise UsageError if one of the URLs is no address of an endpoint of OpenAI's API."""
    example = "write openai+https://HOST/v1, up to what stands before /chat/completions"
    for url in listed_urls(urls):
        if not url.startswith(OPENAI_SCHEMES):
            raise UsageError(f"{field}: {url!r} is among endpoints of OpenAI's API, whose traces are text: take it out")
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"{field}: {url!r} cannot be read ({error}): {example}") from error
        if parts.username is not None or parts.password is not None:
            raise UsageError(f"{field}: the URL for {host} holds credentials: name the key's variable, api_key_env")
        if not host or parts.query or parts.fragment or parts.path.rstrip("/").endswith("/completions"):
            raise UsageError(f"{field}: {url!r} is no base URL: {example}")


def local_model(url: str, field: str) -> str:
    """The model's folder of a `local:` URL. Raises UsageError if no model is there."""
    model = url.removeprefix("local:")
    if not model:
        raise UsageError(f"{field} 'local:' names no model: write local:PATH, or local:pocket:teacher")
    path = resolve_model(model)
    others = TEACHERS_BESIDE_FOLDERS
    if not is_evident_path(path):
        others += f"; a teacher of the hub is fetched with `hf download {path} --local-dir {path}`"
    require_model_folder(path, f"{field} {url!r}", others)
    return path


def _check_traces_file(out: Path) -> None:
    require_writable(out.parent, "out", out)
    if out.is_dir():
        raise UsageError(f"out {str(out)!r} is a folder: name a file in it, such as {str(out / 'traces.jsonl')!r}")


def _check_key_file(path: Path | None, key: str) -> None:
    if path is not None:
        require_file(path, f"{key}.api_key_file", "write the API key into it, alone")


def _check_tls(tls: TlsConfig, key: str) -> None:
    if tls == TlsConfig():
        return
    from vold_client import InvalidArgument, Tls  # gRPC with it: for whoever uses certificates

    try:
        Tls(ca=tls.ca, cert=tls.cert, key=tls.key).ssl_context()
    except InvalidArgument as error:
        raise UsageError(f"{key}.{error.message}") from error
