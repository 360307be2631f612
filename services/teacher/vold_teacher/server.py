"""Put the teacher together from its settings and serve it on both faces."""

import logging

import torch
from transformers.utils import logging as transformers_logging
from vold_proto.v1 import teacher_pb2_grpc
from vold_service.grpc import GrpcServer
from vold_service.http import make_app
from vold_service.serve import Readiness, serve

from vold_teacher.backends.base import Backend
from vold_teacher.backends.factory import make_backend
from vold_teacher.backends.folder import text_config
from vold_teacher.engine.engine import EngineLimits
from vold_teacher.grpc import SERVICE_NAME, TeacherServicer
from vold_teacher.http import add_routes
from vold_teacher.service import Teacher
from vold_teacher.settings import TeacherSettings, model_folder
from vold_teacher.tokenizer import Tokenizer

log = logging.getLogger("vold.teacher")


def make_teacher(settings: TeacherSettings) -> Teacher:
    def load() -> tuple[Backend, Tokenizer]:
        transformers_logging.disable_progress_bar()  # the log is for lines
        # On the device thread and before any of its work: OpenMP keeps the number for each thread that asks.
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        return make_backend(settings), Tokenizer(model_folder(settings))

    folder = model_folder(settings)
    return Teacher(
        name=settings.name or folder.resolve().name,
        revision=settings.revision or str(text_config(folder).get("_commit_hash") or ""),
        load=load,
        engine_limits=EngineLimits(settings.max_batch_tokens, settings.max_queue_tokens),
        max_top_k=settings.max_top_k,
        max_candidates=settings.max_candidates,
    )


async def main(settings: TeacherSettings) -> None:
    """Serve until a signal."""
    teacher = make_teacher(settings)
    readiness = Readiness()
    app = make_app("vold teacher", max_body_bytes=settings.max_body_bytes, ready=readiness)
    add_routes(app, teacher)
    grpc_server = GrpcServer(max_body_bytes=settings.max_body_bytes, services=[SERVICE_NAME])
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(TeacherServicer(teacher), grpc_server.server)
    await serve(
        settings,
        name="vold-teacher",
        app=app,
        grpc_server=grpc_server,
        readiness=readiness,
        start=teacher.start,
        stop=teacher.stop,
    )
