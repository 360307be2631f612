"""`vold-verifier`: serve the verifiers, list them, and make API keys."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from vold_service.keys import Keys, KeysError, describe_new_key
from vold_service.settings import ExposureError, shown_input
from vold_service.tls import Tls, TlsError
from vold_service.version import version_option

from vold_verifier import registry
from vold_verifier.settings import VerifierSettings

if TYPE_CHECKING:
    from vold_service.processes import Processes

    from vold_verifier.engine.forkclient import ForkServerProcess

app = typer.Typer(
    help="Rewards for completions, computed in worker processes that can be killed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", help="a module whose VERIFIERS are served too; may be repeated")
]


@app.callback()
def _program(version: Annotated[bool, version_option("vold-verifier")] = False) -> None: ...


@app.command("serve")
def serve_command(
    http: Annotated[str | None, typer.Option(help="HOST:PORT of the HTTP face, or none")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT or unix:PATH of the gRPC face, or none")] = None,
    workers: Annotated[int | None, typer.Option(help="worker processes; the number of cores by default")] = None,
    time_limit: Annotated[float | None, typer.Option(help="CPU seconds for one item [1]")] = None,
    hard_time_limit: Annotated[
        float | None, typer.Option(help="wall-clock seconds for one item [10 x time limit]")
    ] = None,
    worker_memory_bytes: Annotated[int | None, typer.Option(help="address space of one worker [512 MiB]")] = None,
    recycle_after: Annotated[int | None, typer.Option(help="items after which a worker is replaced [2000]")] = None,
    enable: Annotated[
        list[str] | None, typer.Option(help="a verifier that is off by default (code); may be repeated")
    ] = None,
    allow_weak_sandbox: Annotated[
        bool | None,
        typer.Option("--allow-weak-sandbox", help="serve code where programs can read the files that the service can"),
    ] = None,
    sandbox_workers: Annotated[
        int | None, typer.Option(help="sandboxed workers; as many as workers by default")
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible API of the judge; its key is VOLD_JUDGE_KEY")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="the judge's model")] = None,
    judge_rubric: Annotated[Path | None, typer.Option(help="file with the rubric of items without one")] = None,
    max_items: Annotated[int | None, typer.Option(help="items in one request [4096]")] = None,
    max_queued_items: Annotated[int | None, typer.Option(help="items waiting in all [65536]")] = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="memory for cached verdicts [64 MiB]; 0 turns the cache off")
    ] = None,
    max_completion_chars: Annotated[int | None, typer.Option(help="longest completion or prompt [262144]")] = None,
    api_keys_file: Annotated[
        Path | None,
        typer.Option("--api-keys", help="YAML file of tenants and the digests of their keys; also VOLD_API_KEYS"),
    ] = None,
    open_: Annotated[
        bool | None,
        typer.Option("--open", help="serve without keys whoever reaches an address that is not of this machine alone"),
    ] = None,
    probes: Annotated[
        str | None, typer.Option(help="HOST:PORT of /healthz and /readyz in plain HTTP, with or without TLS")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate of both faces")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key, not encrypted")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the CA that must have signed callers' certificates")
    ] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="largest request [64 MiB]")] = None,
    max_json_bytes: Annotated[int | None, typer.Option(help="largest request of JSON [1 MiB]")] = None,
    max_tenant_bytes: Annotated[
        int | None, typer.Option(help="bytes of a tenant's requests and replies under way [1 GiB]")
    ] = None,
    drain_seconds: Annotated[
        float | None, typer.Option(help="seconds that SIGTERM waits for requests in flight [20]")
    ] = None,
    idle_seconds: Annotated[
        float | None, typer.Option(help="seconds without data before a started request is ended [30]")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error [info]")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json [text]")] = None,
    plugins: Plugins = None,
) -> None:
    """Serve over HTTP and gRPC until SIGTERM. Each option is also an environment variable, such as VOLD_TIME_LIMIT."""
    options = {name.rstrip("_"): value for name, value in locals().items() if value not in (None, [])}
    settings = _settings(options)
    try:
        keys, tls = settings.keys(), settings.tls()
        settings.check_exposure(keys, tls)
    except (KeysError, TlsError, ExposureError) as error:
        raise typer.BadParameter(str(error)) from None
    from vold_verifier.engine.forkclient import ForkServerProcess
    from vold_verifier.engine.options import main_options

    # It loads the verifiers while this process loads the libraries of the servers.
    launched = ForkServerProcess.launch(main_options(settings).of_fork_server())
    from vold_service.serve import run

    run(lambda processes: _serve(settings, keys, tls, processes, launched), name="vold-verifier", settings=settings)


def _settings(options: dict[str, Any]) -> VerifierSettings:
    """Return the settings: options before environment variables before defaults. Raises typer.BadParameter."""
    for face in ("http", "grpc"):
        if options.get(face) == "none":
            options[face] = None
    try:
        settings = VerifierSettings(**options)
    except ValidationError as error:
        lines = [
            f"--{'.'.join(map(str, e['loc'])).replace('_', '-')}: " * bool(e["loc"])
            + e["msg"].removeprefix("Value error, ")
            + (f"; got {value}" if (value := shown_input(e)) else "")
            for e in error.errors()
        ]
        raise typer.BadParameter("\n".join(lines)) from None
    if settings.http is None and settings.grpc is None:
        raise typer.BadParameter("both --http and --grpc are none: nothing would be served")
    return settings


async def _serve(
    settings: VerifierSettings, keys: Keys, tls: Tls | None, processes: "Processes", launched: "ForkServerProcess"
) -> None:
    from vold_service.app import add_status_page
    from vold_service.serve import Readiness, serve

    from vold_verifier.engine.engine import Engine
    from vold_verifier.grpc import make_server
    from vold_verifier.http import create_app
    from vold_verifier.status import create_history, snapshot

    readiness, history = Readiness(lambda: engine.available), create_history()
    try:
        engine = Engine(settings, processes, on_change=readiness.update, launched=launched)
    except registry.PluginError as error:
        raise SystemExit(f"error: {error}") from error
    app = create_app(engine, max_body_bytes=settings.max_body_bytes, ready=readiness, keys=keys, tls=tls is not None)
    add_status_page(app, lambda viewer: snapshot(engine, history, ready=readiness(), viewer=viewer), "vold_verifier")

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


@app.command("key")
def key_command(
    tenant: Annotated[str, typer.Option(help="the tenant of the key")],
    run_id: Annotated[str, typer.Option(help="account its requests to this run, whichever run a caller names")] = "",
    expires: Annotated[
        str, typer.Option(help="when the key expires: a date, or a time such as 2027-01-31T12:00+01:00")
    ] = "",
) -> None:
    """Print a new API key, which is not stored, and the lines for the file that --api-keys names."""
    try:
        typer.echo(describe_new_key(tenant, run_id, expires), nl=False)
    except KeysError as error:
        raise typer.BadParameter(str(error)) from None


@app.command("list")
def list_command(plugins: Plugins = None) -> None:
    """List the verifiers."""
    table = Table("verifier", "what it checks", "parameters")
    for verifier in registry.load(plugins or ()).values():
        table.add_row(verifier.name, verifier.summary, ", ".join(verifier.parameters.model_fields))
    Console().print(table)


def main() -> None:
    app()
