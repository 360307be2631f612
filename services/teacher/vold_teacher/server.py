"""Builds the teacher from its settings and serves it on both faces."""

import logging

import torch
from transformers.utils import logging as transformers_logging
from vold_proto.v1 import teacher_pb2_grpc
from vold_service.app import add_status_page, make_app
from vold_service.grpc import GrpcServer
from vold_service.keys import Keys
from vold_service.processes import Processes
from vold_service.serve import Readiness, serve
from vold_service.tls import Tls
from vold_service.usage import Usage

from vold_teacher.backends.base import Backend
from vold_teacher.backends.folder import text_config
from vold_teacher.engine.cache import DiskTier, ScoreCache
from vold_teacher.engine.engine import EngineLimits
from vold_teacher.factory import make_backend
from vold_teacher.grpc import PLACED, SERVICE_NAME, TeacherServicer
from vold_teacher.http import add_routes
from vold_teacher.models import Models, ModelSpec
from vold_teacher.service import Teacher
from vold_teacher.settings import TeacherSettings, model_folder
from vold_teacher.status import make_history, snapshot
from vold_teacher.tokenizer import Tokenizer

log = logging.getLogger("vold.teacher")


def make_teacher(settings: TeacherSettings, processes: Processes) -> Teacher:
    """The teacher of these settings, not started. processes: for work that must not run on the event loop.

    Raises OSError if the cache folder cannot be used.
    """

    def load(spec: ModelSpec) -> tuple[Backend, Tokenizer]:
        transformers_logging.disable_progress_bar()  # the log holds lines only
        # On the device thread, before its first work: OpenMP keeps the number per calling thread.
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        tokenizer = Tokenizer(model_folder(settings, spec.location))  # first: if it fails, no model is in memory
        return make_backend(settings, spec.location), tokenizer

    def revision(location: str) -> str:
        return settings.revision or str(text_config(model_folder(settings, location)).get("_commit_hash") or "")

    disk = DiskTier(settings.cache_dir, settings.cache_dir_bytes) if settings.cache_dir is not None else None
    usage = Usage()
    models = Models(
        [ModelSpec(name, location, revision(location)) for name, location in settings.named_models()],
        load=load,
        engine_limits=EngineLimits(settings.max_batch_tokens, settings.max_queue_tokens),
        max_top_k=settings.max_top_k,
        max_candidates=settings.max_candidates,
        models_dir=settings.models_dir,
        cache=ScoreCache(settings.cache_bytes, disk) if settings.cache_bytes or disk is not None else None,
        max_sequences=settings.max_sequences,
        max_reply_bytes=settings.max_reply_bytes,
        processes=processes,
        usage=usage,
    )
    return Teacher(
        models,
        max_sequences=settings.max_sequences,
        max_reply_bytes=settings.max_reply_bytes,
        max_rows=settings.max_rows,
        max_tenant_bytes=settings.max_tenant_bytes,
        processes=processes,
        usage=usage,
    )


async def main(settings: TeacherSettings, keys: Keys, tls: Tls | None, processes: Processes) -> None:
    """Serve until SIGTERM or SIGINT."""
    teacher = make_teacher(settings, processes)
    readiness = Readiness()
    app = make_app(
        "vold teacher",
        max_body_bytes=settings.max_body_bytes,
        max_json_bytes=settings.max_json_bytes,
        ready=readiness,
        keys=keys,
        tls=tls is not None,
    )
    add_routes(app, teacher)
    history = make_history(teacher)
    add_status_page(app, lambda viewer: snapshot(teacher, history, ready=readiness(), viewer=viewer), "vold_teacher")
    grpc_server = GrpcServer(
        max_body_bytes=settings.max_body_bytes,
        services=[SERVICE_NAME],
        quotas=teacher.quotas,
        placed=PLACED,
        max_fields=teacher.max_fields,
        keys=keys,
        tls=tls,
        idle_seconds=settings.idle_seconds,
    )
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(TeacherServicer(teacher), grpc_server.server)

    async def start() -> None:
        await teacher.models.start()
        history.start()

    async def stop() -> None:
        await history.stop()
        await teacher.models.stop()

    await serve(
        settings,
        name="vold-teacher",
        app=app,
        grpc_server=grpc_server,
        readiness=readiness,
        keys=keys,
        tls=tls,
        start=start,
        stop=stop,
    )
