"""vLLM's weight-transfer API on a CPU: its NCCL engines with a TCP store in NCCL's place, registered through vLLM's
public factories and loaded into the server as a plugin. The handshake, the update's start and finish, how the server
loads what comes, and our side of it all are the real ones.
"""

import contextlib
from pathlib import Path
from typing import Any

STORE = "vold-test-store"


def plugin_path(folder: Path) -> str:
    """A PYTHONPATH on which a vLLM server finds the plugin."""
    info = folder / "vold_test_store-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vold-test-store\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nstore = store_weights:register_in_server\n")
    return f"{folder}:{Path(__file__).parent}"


def _group(info: Any, rank: int) -> Any:
    from vllm.distributed.utils import StatelessProcessGroup

    return StatelessProcessGroup.create(
        host=info.master_address, port=info.master_port, rank=rank, world_size=info.world_size
    )


def register_in_server() -> None:
    """vLLM calls it in each of its processes, perhaps more than once."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    class StoreEngine(NCCLWeightTransferEngine):
        def init_transfer_engine(self, init_info: Any) -> None:
            self.model_update_group = _group(init_info, self.parallel_config.rank + init_info.rank_offset)

        def update_weights(self, update_info: dict[str, Any]) -> None:  # the base class waits for an accelerator
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: Any) -> None:
            for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
                weight = self.model_update_group.broadcast(None, src=0)
                assert (str(weight.dtype), list(weight.shape)) == (f"torch.{dtype}", list(shape)), name
                self.model.load_weights([(name, weight)])

        def shutdown(self) -> None:
            self.model_update_group = None

    with contextlib.suppress(ValueError):  # it is registered already
        WeightTransferEngineFactory.register_engine(STORE, StoreEngine)


def store_transfer(engine: Any) -> Any:
    """The engine's weights.NativeTransfer, whose trainer-side engine of vLLM broadcasts over the store."""
    from dataclasses import dataclass
    from typing import ClassVar

    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory, nccl_engine
    from vllm.utils.network_utils import get_open_port
    from vold_trainer.rollout.weights import NativeTransfer

    @dataclass
    class StoreInfo(nccl_engine.NCCLTrainerInitInfo):
        backend: ClassVar[str] = STORE

    class StoreTrainer(nccl_engine.NCCLTrainerWeightTransferEngine):
        @classmethod
        def trainer_init(cls, init_info: Any, **options: Any) -> Any:
            real = nccl_engine.open_trainer_endpoint
            nccl_engine.open_trainer_endpoint = lambda info: _group(info, 0)
            try:
                return super().trainer_init(init_info, **options)
            finally:
                nccl_engine.open_trainer_endpoint = real

        def _broadcast(self, source: Any, meta: Any) -> None:
            for _, tensor in self._checked_iter(source, meta):
                self.model_update_group.broadcast(tensor, src=0)

        def shutdown(self) -> None:
            self.model_update_group = None

    class StoreNative(NativeTransfer):
        def init_info(self) -> Any:
            return StoreInfo("127.0.0.1", get_open_port(), self.world_size, packed=False, rank=0)

    with contextlib.suppress(ValueError):
        WeightTransferTrainerFactory.register_engine(STORE, StoreTrainer)
    return StoreNative(STORE, "", engine.student, engine.servers, engine.infos, engine.tasks)
