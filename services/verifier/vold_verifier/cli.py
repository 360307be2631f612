"""`vold-verifier`: serve, and list what can be checked."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from vold_service.keys import Keys, KeysError, describe_new_key
from vold_service.serve import Readiness, run, serve
from vold_service.tls import Tls, TlsError
from vold_service.version import version_option

from vold_verifier import registry
from vold_verifier.settings import VerifierSettings

app = typer.Typer(
    help="Rewards for completions, checked in worker processes that can be killed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", help="a module whose VERIFIERS are offered too; may be repeated")
]


@app.callback()
def _program(version: Annotated[bool, version_option("vold-verifier")] = False) -> None: ...


@app.command("serve")
def serve_command(
    http: Annotated[str | None, typer.Option(help="HOST:PORT of the HTTP face, or none")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT or unix:PATH of the gRPC face, or none")] = None,
    workers: Annotated[int | None, typer.Option(help="worker processes; the number of cores by default")] = None,
    time_limit: Annotated[float | None, typer.Option(help="CPU seconds for one item [1]")] = None,
    hard_time_limit: Annotated[float | None, typer.Option(help="wall seconds for one item [10 x time limit]")] = None,
    worker_memory_bytes: Annotated[int | None, typer.Option(help="address space of one worker [512 MiB]")] = None,
    recycle_after: Annotated[int | None, typer.Option(help="items after which a worker is replaced [2000]")] = None,
    enable: Annotated[
        list[str] | None, typer.Option(help="a verifier that is off otherwise (code); may be repeated")
    ] = None,
    sandbox_workers: Annotated[int | None, typer.Option(help="sandboxed workers; as many as workers")] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible API of the judge; its key is VOLD_JUDGE_KEY")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="the model that judges")] = None,
    judge_rubric: Annotated[Path | None, typer.Option(help="file with the rubric of items that bring none")] = None,
    max_items: Annotated[int | None, typer.Option(help="items in one request [4096]")] = None,
    max_queued_items: Annotated[int | None, typer.Option(help="items waiting in all [65536]")] = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="memory for verdicts that may be asked for again [64 MiB]; 0 keeps none")
    ] = None,
    max_completion_chars: Annotated[int | None, typer.Option(help="longest completion or prompt [262144]")] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="YAML file of tenants and the digests of their keys; also VOLD_API_KEYS")
    ] = None,
    probes: Annotated[
        str | None, typer.Option(help="HOST:PORT where /healthz and /readyz answer in plain HTTP, whatever TLS says")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate both faces show")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key, not encrypted")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the CA that callers' certificates need")
    ] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="largest request [64 MiB]")] = None,
    drain_seconds: Annotated[float | None, typer.Option(help="how long SIGTERM waits for work in flight [20]")] = None,
    idle_seconds: Annotated[float | None, typer.Option(help="silence in mid-request that is borne [30]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error [info]")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json [text]")] = None,
    plugin: Plugins = None,
) -> None:
    """Serve over HTTP and gRPC until SIGTERM. Each option is also an environment variable, such as VOLD_TIME_LIMIT."""
    given: dict[str, Any] = {
        "http": http,
        "grpc": grpc,
        "workers": workers,
        "time_limit": time_limit,
        "hard_time_limit": hard_time_limit,
        "worker_memory_bytes": worker_memory_bytes,
        "recycle_after": recycle_after,
        "enable": tuple(enable) if enable else None,
        "sandbox_workers": sandbox_workers,
        "judge_url": judge_url,
        "judge_model": judge_model,
        "judge_rubric": judge_rubric,
        "max_items": max_items,
        "max_queued_items": max_queued_items,
        "cache_bytes": cache_bytes,
        "max_completion_chars": max_completion_chars,
        "api_keys_file": api_keys,
        "probes": probes,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "max_body_bytes": max_body_bytes,
        "drain_seconds": drain_seconds,
        "idle_seconds": idle_seconds,
        "log_level": log_level,
        "log_format": log_format,
        "plugins": tuple(plugin) if plugin else None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    for face in ("http", "grpc"):
        if options.get(face) == "none":
            options[face] = None
    try:
        settings = VerifierSettings(**options)
    except ValidationError as error:
        lines = [
            f"--{'.'.join(map(str, e['loc'])).replace('_', '-')}: {e['msg']}; got {e['input']!r}"
            for e in error.errors()
        ]
        raise typer.BadParameter("\n".join(lines)) from None
    if settings.http is None and settings.grpc is None:
        raise typer.BadParameter("both --http and --grpc are none: nothing would be served")
    try:
        keys, tls = settings.keys(), settings.tls()
    except (KeysError, TlsError) as error:
        raise typer.BadParameter(str(error)) from None
    run(lambda: _serve(settings, keys, tls), name="vold-verifier", settings=settings)


async def _serve(settings: VerifierSettings, keys: Keys, tls: Tls | None) -> None:
    from vold_service.http import add_status

    from vold_verifier.engine.engine import Engine
    from vold_verifier.grpc import make_server
    from vold_verifier.http import make
    from vold_verifier.status import snapshot, watch

    engine, readiness = _engine(settings, Engine), Readiness()
    history = watch()
    app = make(engine, max_body_bytes=settings.max_body_bytes, ready=readiness, keys=keys)
    add_status(app, lambda viewer: snapshot(engine, history, ready=readiness()), "vold_verifier")

    async def start() -> None:
        await engine.start()
        history.start()

    async def stop() -> None:
        await history.stop()
        await engine.stop()

    await serve(
        settings,
        name="verifier",
        app=app,
        grpc_server=make_server(
            engine,
            max_body_bytes=settings.max_body_bytes,
            keys=keys,
            tls=tls,
            idle_seconds=settings.idle_seconds,
        ),
        readiness=readiness,
        keys=keys,
        tls=tls,
        start=start,
        stop=stop,
    )


def _engine(settings: VerifierSettings, kind: Any) -> Any:
    try:
        return kind(settings)
    except registry.PluginError as error:
        raise SystemExit(f"error: {error}") from error


@app.command("key")
def key_command(
    tenant: Annotated[str, typer.Option(help="whose key it is")],
    run_id: Annotated[str, typer.Option(help="account what it does to this run, whatever run a caller names")] = "",
    expires: Annotated[str, typer.Option(help="when it ends: a date, or a time, as 2027-01-31T12:00+01:00")] = "",
) -> None:
    """Print a new API key, this once, and the lines for the file that --api-keys names."""
    try:
        typer.echo(describe_new_key(tenant, run_id, expires), nl=False)
    except KeysError as error:
        raise typer.BadParameter(str(error)) from None


@app.command("list")
def list_command(plugin: Plugins = None) -> None:
    """What can be checked."""
    table = Table("verifier", "what it checks", "parameters")
    for verifier in registry.load(plugin or ()).values():
        table.add_row(verifier.name, verifier.summary, ", ".join(verifier.parameters.model_fields))
    Console().print(table)


def main() -> None:
    app()
