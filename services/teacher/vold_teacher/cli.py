"""`vold-teacher serve` serves models over gRPC and HTTP; `vold-teacher key` makes an API key."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from vold_service.keys import KeysError, describe_new_key
from vold_service.settings import shown_input
from vold_service.version import version_option

from vold_teacher.settings import TeacherSettings, check_backend

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Serve a teacher: log-probabilities and completions."
)


@app.callback()
def _program(version: Annotated[bool, version_option("vold-teacher")] = False) -> None: ...


def _help(name: str) -> str:
    return TeacherSettings.model_fields[name].description or ""


@app.command()
def serve(
    model: Annotated[list[str] | None, typer.Option(help=_help("model"))] = None,
    http: Annotated[str | None, typer.Option(help="HOST:PORT of the HTTP face, or none; port 0 picks one")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT or unix:PATH of the gRPC face, or none")] = None,
    no_http: Annotated[bool, typer.Option("--no-http", help="the same as --http none")] = False,
    no_grpc: Annotated[bool, typer.Option("--no-grpc", help="the same as --grpc none")] = False,
    name: Annotated[str | None, typer.Option(help=_help("name"))] = None,
    revision: Annotated[str | None, typer.Option(help=_help("revision"))] = None,
    models_dir: Annotated[Path | None, typer.Option(help=_help("models_dir"))] = None,
    backend: Annotated[str | None, typer.Option(help=_help("backend"))] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda")] = None,
    attention: Annotated[str | None, typer.Option(help=_help("attention"))] = None,
    compile: Annotated[bool | None, typer.Option("--compile", help=_help("compile"))] = None,  # noqa: A002
    batch_invariant: Annotated[bool | None, typer.Option("--batch-invariant", help=_help("batch_invariant"))] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help=_help("gpu_memory_utilization"))] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help=_help("max_num_batched_tokens"))] = None,
    tokenizer: Annotated[Path | None, typer.Option(help=_help("tokenizer"))] = None,
    vocab_size: Annotated[int | None, typer.Option(help=_help("vocab_size"))] = None,
    upstream_key_env: Annotated[str | None, typer.Option(help=_help("upstream_key_env"))] = None,
    upstream_model: Annotated[str | None, typer.Option(help=_help("upstream_model"))] = None,
    upstream_timeout: Annotated[float | None, typer.Option(help=_help("upstream_timeout"))] = None,
    upstream_health: Annotated[float | None, typer.Option(help=_help("upstream_health"))] = None,
    threads: Annotated[int | None, typer.Option(help=_help("threads"))] = None,
    max_sequence: Annotated[int | None, typer.Option(help=_help("max_sequence"))] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help=_help("max_batch_tokens"))] = None,
    max_queue_tokens: Annotated[int | None, typer.Option(help=_help("max_queue_tokens"))] = None,
    max_rows: Annotated[int | None, typer.Option(help=_help("max_rows"))] = None,
    max_cache_tokens: Annotated[int | None, typer.Option(help=_help("max_cache_tokens"))] = None,
    cache_bytes: Annotated[int | None, typer.Option(help=_help("cache_bytes"))] = None,
    cache_dir: Annotated[Path | None, typer.Option(help=_help("cache_dir"))] = None,
    cache_dir_bytes: Annotated[int | None, typer.Option(help=_help("cache_dir_bytes"))] = None,
    max_top_k: Annotated[int | None, typer.Option(help=_help("max_top_k"))] = None,
    max_reply_bytes: Annotated[int | None, typer.Option(help=_help("max_reply_bytes"))] = None,
    max_candidates: Annotated[int | None, typer.Option(help=_help("max_candidates"))] = None,
    max_sequences: Annotated[int | None, typer.Option(help=_help("max_sequences"))] = None,
    api_keys_file: Annotated[Path | None, typer.Option("--api-keys", help=_help("api_keys_file"))] = None,
    open_: Annotated[bool | None, typer.Option("--open", help=_help("open"))] = None,
    probes: Annotated[str | None, typer.Option(help=_help("probes"))] = None,
    tls_cert: Annotated[Path | None, typer.Option(help=_help("tls_cert"))] = None,
    tls_key: Annotated[Path | None, typer.Option(help=_help("tls_key"))] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help=_help("tls_client_ca"))] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help=_help("max_body_bytes"))] = None,
    max_json_bytes: Annotated[int | None, typer.Option(help=_help("max_json_bytes"))] = None,
    max_tenant_bytes: Annotated[int | None, typer.Option(help=_help("max_tenant_bytes"))] = None,
    drain_seconds: Annotated[float | None, typer.Option(help=_help("drain_seconds"))] = None,
    idle_seconds: Annotated[float | None, typer.Option(help=_help("idle_seconds"))] = None,
    log_level: Annotated[str | None, typer.Option(help=_help("log_level"))] = None,
    log_format: Annotated[str | None, typer.Option(help=_help("log_format"))] = None,
) -> None:
    """Serve until SIGTERM or SIGINT; prints one JSON line when ready. Options are also VOLD_TEACHER_ variables."""
    options = {
        key.rstrip("_"): value
        for key, value in locals().items()
        if value is not None and key not in ("no_http", "no_grpc")
    }
    try:
        settings = _settings(options, no_http=no_http, no_grpc=no_grpc)
        check_backend(settings)
        keys, tls = settings.keys(), settings.tls()
        settings.check_exposure(keys, tls)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    from vold_service.serve import run  # late: --help should not wait for the libraries of the servers

    from vold_teacher.server import main as serve_teacher

    run(lambda processes: serve_teacher(settings, keys, tls, processes), name="vold-teacher", settings=settings)


@app.command()
def key(
    tenant: Annotated[str, typer.Option(help="whose key it is")],
    run_id: Annotated[str, typer.Option(help="account its requests to this run, whatever run a caller names")] = "",
    expires: Annotated[str, typer.Option(help="when it ends: a date, or a time, as 2027-01-31T12:00+01:00")] = "",
) -> None:
    """Print a new API key, this once, and the lines for the file that --api-keys names."""
    try:
        typer.echo(describe_new_key(tenant, run_id, expires), nl=False)
    except KeysError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _settings(options: dict[str, Any], *, no_http: bool, no_grpc: bool) -> TeacherSettings:
    """Settings from options, then environment, then defaults. Raises ValueError with one line that names the option."""
    for face, off in (("http", no_http), ("grpc", no_grpc)):
        if off or options.get(face) == "none":
            options[face] = None
    try:
        settings = TeacherSettings(**options)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + "-".join(map(str, first["loc"])).replace("_", "-") if first["loc"] else ""
        where = " ".join(filter(None, (option, shown_input(first))))
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {message}" if where else message) from error
    if settings.http is None and settings.grpc is None:
        raise ValueError("--http none and --grpc none together leave nothing to serve: keep one")
    return settings


def main() -> None:
    app()
