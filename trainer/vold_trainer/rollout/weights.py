"""How the student's weights get into vLLM.

disk: a safetensors folder that both sides see, and vLLM's `reload_weights`. Works everywhere, needs no vLLM here.
nccl: vLLM's weight-transfer API, a broadcast from this GPU to the servers' GPUs. Needs CUDA and vLLM on both sides.
ipc: the same API, for a server on this very GPU: it opens the student's memory.

Names and layouts are those of the checkpoint, as `save_pretrained` writes it: what vLLM's loaders read.
"""

import asyncio
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from vold_packing.transformers import undocumented
from vold_proto.distribution import advice

from vold_trainer.config import RolloutConfig
from vold_trainer.errors import RunError, UsageError
from vold_trainer.rollout.vllm_server import Server, ServerInfo
from vold_trainer.student.models import Student
from vold_trainer.tasks import ClientTasks

with undocumented():
    from transformers.core_model_loading import revert_weight_conversion


class Transfer(Protocol):
    """Gives weights to servers that are paused."""

    def send(self, version: int) -> None:
        """Raises RunError where a server did not take them: what it draws from then is not known."""
        ...

    def close(self) -> None: ...


def make_transfer(
    config: RolloutConfig, student: Student, servers: Sequence[Server], infos: Sequence[ServerInfo], tasks: ClientTasks
) -> Transfer:
    """The way that rollout.weights asks for. Raises UsageError where one side cannot go it."""
    way = config.weights
    offered = {info.transfer for info in infos}
    if way == "auto":
        native = len(offered) == 1 and offered <= {"nccl", "ipc"} and not _lacks(student, way)
        way = str(offered.pop()) if native else "disk"  # type: ignore[assignment]
    if way == "disk":
        return Disk(config.weights_folder, student, servers, tasks)
    if lacks := _lacks(student, way):
        raise UsageError(lacks)
    for server, info in zip(servers, infos, strict=True):
        if info.transfer != way:
            raise UsageError(
                f"rollout.weights is {way!r}, and rollout.url {server.name} was started for {info.transfer!r}: start "
                f'it with --weight-transfer-config \'{{"backend": "{way}"}}\', or use rollout.weights=disk'
            )
    return Native(way, config.nccl_address, student, servers, infos, tasks)


def _lacks(student: Student, way: str) -> str:
    """What this side lacks for vLLM's own `way`, and what to do; empty where nothing."""
    remedy = "use rollout.weights=disk"
    if importlib.util.find_spec("vllm") is None:
        return advice(f"rollout.weights={way}", "vllm", "vllm", remedy)
    if student.model.device.type != "cuda" and not torch.cuda.is_available():
        return f"rollout.weights is {way!r}, and the student is on no CUDA device: {remedy}"
    return ""


def checkpoint_tensors(student: Student) -> dict[str, Tensor]:
    """The weights by the names, and in the layout, that a checkpoint has; tied ones once. No copies where the model
    computes with what its checkpoint holds.
    """
    model = student.model
    if hasattr(model, "peft_config"):
        raise UsageError("a student with adapters reaches vLLM over the disk, merged: set rollout.weights=disk")
    kept = model.state_dict().keys()
    named = {name: value.detach() for name, value in model.named_parameters()}
    named |= {name: value for name, value in model.named_buffers() if name in kept}
    return dict(revert_weight_conversion(model, named))


class Disk:
    """A folder a version, read by the servers and then removed."""

    def __init__(self, folder: Path | None, student: Student, servers: Sequence[Server], tasks: ClientTasks) -> None:
        self.student = student
        self.servers = servers
        self.tasks = tasks
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="vold-weights-", dir=folder)).absolute()

    def send(self, version: int) -> None:
        path = self.folder / str(version)
        self.student.save(path)
        try:
            self.tasks.run(self._reload(path))
        finally:
            shutil.rmtree(path, ignore_errors=True)

    async def _reload(self, path: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}
        for task in [asyncio.ensure_future(server.control("/collective_rpc", json=body)) for server in self.servers]:
            try:
                await task
            except RunError as error:
                raise RunError(
                    f"{error}. The weights are in {str(path)!r}: vLLM has to see that folder under the same name "
                    "(rollout.weights_folder)"
                ) from error

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Native:
    """vLLM's weight-transfer API: its trainer-side engine, over our own connections to several servers at once."""

    def __init__(
        self,
        way: str,
        address: str,
        student: Student,
        servers: Sequence[Server],
        infos: Sequence[ServerInfo],
        tasks: ClientTasks,
    ) -> None:
        self.way = way
        self.address = address
        self.student = student
        self.client = FanOut(servers, [info.world_size for info in infos], tasks)
        self.world_size = 1 + sum(info.world_size for info in infos)
        self.engine: Any = None

    def send(self, version: int) -> None:
        # The connection is made when the first weights go: by then accelerate has moved the student to its device.
        try:
            if self.engine is None:
                self.engine = self._connect()
            self.engine.send_weights()
        except (RunError, UsageError):
            raise
        except Exception as error:
            raise RunError(f"rollout.weights {self.way!r}: the transfer failed: {error}") from error

    def _connect(self) -> Any:
        from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory

        student = self.student

        class Checkpoint(WeightSource):
            def metadata(self) -> list[Any]:
                return [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in checkpoint_tensors(student).items()]

            def __iter__(self) -> Iterator[tuple[str, Tensor]]:
                yield from checkpoint_tensors(student).items()

        return WeightTransferTrainerFactory.trainer_init(self.init_info(), client=self.client, source=Checkpoint())

    def init_info(self) -> Any:
        """What vLLM's trainer-side engine is made from; its class says which engine that is."""
        if self.way == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=0)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_ip, get_open_port

        return NCCLTrainerInitInfo(
            rank=0,
            master_address=self.address or get_ip(),
            master_port=get_open_port(),
            world_size=self.world_size,
        )

    def close(self) -> None:
        if self.engine is not None:
            self.engine.shutdown()


class FanOut:
    """vLLM's `VLLMWeightSyncClient` protocol for several servers: each call goes to all of them at the same time, and
    the workers of each get ranks after those of the servers before it.
    """

    def __init__(self, servers: Sequence[Server], world_sizes: Sequence[int], tasks: ClientTasks) -> None:
        self.servers = servers
        self.offsets = [sum(world_sizes[:index]) for index in range(len(world_sizes))]
        self.tasks = tasks

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        bodies = [
            {
                "init_info": init_info
                | ({"rank_offset": init_info["rank_offset"] + offset} if "rank_offset" in init_info else {})
            }
            for offset in self.offsets
        ]
        self._all("/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        self._all("/start_weight_update", [None] * len(self.servers))

    def update_weights(self, update_info: Any) -> None:
        self._all("/update_weights", [{"update_info": _json_safe(update_info)}] * len(self.servers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        body = {"weight_version": weight_version} if weight_version is not None else None
        self._all("/finish_weight_update", [body] * len(self.servers))

    def _all(self, route: str, bodies: Sequence[Any]) -> None:
        async def work() -> None:
            await asyncio.gather(
                *(server.control(route, json=body) for server, body in zip(self.servers, bodies, strict=True))
            )

        self.tasks.run(work())


def _json_safe(update_info: Any) -> Any:
    """As vLLM's own HTTP client sends it: handles of CUDA memory are tuples, which JSON has not, and travel pickled.
    The server takes them only with VLLM_ALLOW_INSECURE_SERIALIZATION=1.
    """
    if not isinstance(update_info, dict) or update_info.get("ipc_handles") is None:
        return update_info
    import base64
    import pickle

    rest = {key: value for key, value in update_info.items() if key != "ipc_handles"}
    return rest | {"ipc_handles_pickled": base64.b64encode(pickle.dumps(update_info["ipc_handles"])).decode()}
