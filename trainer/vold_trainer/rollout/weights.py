"""Transfer of the student's weights to vLLM servers.

disk: a safetensors folder that both sides can access, and vLLM's `reload_weights`. Works with any server, without vLLM
on this side.
nccl: vLLM's weight-transfer API, a broadcast from this GPU to the servers' GPUs. Needs CUDA and vLLM on both sides.
ipc: the same API, for a server on the same GPU, which opens the student's memory.

Names and layouts of the tensors are those that `save_pretrained` writes, which vLLM's loaders read.
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
from vold_proto.distribution import missing_extra_message

from vold_trainer.config import RolloutConfig
from vold_trainer.errors import RunError, UsageError
from vold_trainer.rollout.vllm_server import Server, ServerInfo
from vold_trainer.student.models import Student
from vold_trainer.student.token_rows import fold_rows, is_row
from vold_trainer.tasks import ClientTasks

with undocumented():
    from transformers.core_model_loading import revert_weight_conversion


class WeightTransfer(Protocol):
    """Sends weights to servers that are paused."""

    def send(self, version: int) -> None:
        """Send the student's current weights. Raises RunError if a transfer fails; the weights are then unknown."""
        ...

    def close(self) -> None:
        """Release the transfer's resources."""
        ...


def make_transfer(
    config: RolloutConfig, student: Student, servers: Sequence[Server], infos: Sequence[ServerInfo], tasks: ClientTasks
) -> WeightTransfer:
    """Create the transfer that rollout.weights names. Raises UsageError if one side does not support it."""
    method = config.weights
    supported = {info.transfer for info in infos}
    if method == "auto":
        native = len(supported) == 1 and supported <= {"nccl", "ipc"} and not _missing_requirement(student, method)
        method = str(supported.pop()) if native else "disk"  # type: ignore[assignment]
    if method == "disk":
        return DiskTransfer(config.weights_folder, student, servers, tasks)
    if problem := _missing_requirement(student, method):
        raise UsageError(problem)
    for server, info in zip(servers, infos, strict=True):
        if info.transfer != method:
            raise UsageError(
                f"rollout.weights is {method!r}, and rollout.url {server.name} was started for {info.transfer!r}: "
                f'start it with --weight-transfer-config \'{{"backend": "{method}"}}\', or use rollout.weights=disk'
            )
    return NativeTransfer(method, config.nccl_address, student, servers, infos, tasks)


def _missing_requirement(student: Student, method: str) -> str:
    """The requirement of `nccl` or `ipc` that this side does not meet, with a remedy; empty if it meets all."""
    remedy = "use rollout.weights=disk"
    if importlib.util.find_spec("vllm") is None:
        return missing_extra_message(f"rollout.weights={method}", "vllm", "vllm", remedy)
    if student.model.device.type != "cuda" and not torch.cuda.is_available():
        return f"rollout.weights is {method!r}, and the student is on no CUDA device: {remedy}"
    return ""


def checkpoint_tensors(student: Student) -> dict[str, Tensor]:
    """The weights with the names and layouts of a checkpoint; tied weights once.

    A tensor is a copy only if the model's layout differs from the checkpoint's.
    """
    model = student.model
    if hasattr(model, "peft_config"):
        raise UsageError("a student with adapters reaches vLLM over the disk, merged: set rollout.weights=disk")
    saved = model.state_dict().keys()
    tensors = {name: value.detach() for name, value in model.named_parameters()}
    tensors |= {name: value for name, value in model.named_buffers() if name in saved}
    fold_rows(model)  # into the matrices themselves
    tensors = {name: value for name, value in tensors.items() if not is_row(name)}
    return dict(revert_weight_conversion(model, tensors))


class DiskTransfer:
    """Writes a folder for each version, which is removed after the servers have read it."""

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


class NativeTransfer:
    """vLLM's weight-transfer API: its trainer-side engine, with FanOutClient for several servers."""

    def __init__(
        self,
        method: str,
        address: str,
        student: Student,
        servers: Sequence[Server],
        infos: Sequence[ServerInfo],
        tasks: ClientTasks,
    ) -> None:
        self.method = method
        self.address = address
        self.student = student
        self.client = FanOutClient(servers, [info.world_size for info in infos], tasks)
        self.world_size = 1 + sum(info.world_size for info in infos)
        self.engine: Any = None

    def send(self, version: int) -> None:
        # Connect at the first transfer: by then, accelerate has moved the student to its device.
        try:
            if self.engine is None:
                self.engine = self._connect()
            self.engine.send_weights()
        except (RunError, UsageError):
            raise
        except Exception as error:
            raise RunError(f"rollout.weights {self.method!r}: the transfer failed: {error}") from error

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
        """The settings of vLLM's trainer-side engine; their class selects the engine."""
        if self.method == "ipc":
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


class FanOutClient:
    """vLLM's `VLLMWeightSyncClient` protocol for several servers.

    Each call goes to all servers at the same time. The ranks of a server's workers follow those of the previous server.
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
        self._post_to_all("/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        self._post_to_all("/start_weight_update", [None] * len(self.servers))

    def update_weights(self, update_info: Any) -> None:
        self._post_to_all("/update_weights", [{"update_info": _json_safe(update_info)}] * len(self.servers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        body = {"weight_version": weight_version} if weight_version is not None else None
        self._post_to_all("/finish_weight_update", [body] * len(self.servers))

    def _post_to_all(self, route: str, bodies: Sequence[Any]) -> None:
        async def post() -> None:
            await asyncio.gather(
                *(server.control(route, json=body) for server, body in zip(self.servers, bodies, strict=True))
            )

        self.tasks.run(post())


def _json_safe(update_info: Any) -> Any:
    """Encode `update_info` as vLLM's own HTTP client does: handles of CUDA memory, which JSON cannot hold, are pickled.

    The server accepts them only with VLLM_ALLOW_INSECURE_SERIALIZATION=1.
    """
    if not isinstance(update_info, dict) or update_info.get("ipc_handles") is None:
        return update_info
    import base64
    import pickle

    rest = {key: value for key, value in update_info.items() if key != "ipc_handles"}
    return rest | {"ipc_handles_pickled": base64.b64encode(pickle.dumps(update_info["ipc_handles"])).decode()}
