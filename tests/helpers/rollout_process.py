"""One of the processes of a run, each with a vLLM engine: `rollout_process.py URL OUT`, in torchrun's environment."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from vold_trainer.config import RolloutConfig, StudentConfig
from vold_trainer.errors import RunError
from vold_trainer.pocket.world import make_examples
from vold_trainer.rollout.base import Sampling
from vold_trainer.rollout.engines import make_engine
from vold_trainer.student.models import load_student

url, out = sys.argv[1:]
dist.init_process_group("gloo")
rank = dist.get_rank()
engine = make_engine(RolloutConfig(engine="vllm", url=url), load_student(StudentConfig(path="pocket:teacher")))
engine.sync(0)
prompts = make_examples("train", 2, modality="text")
rollouts = engine.generate(prompts[rank : rank + 1], Sampling(max_tokens=8), seed=5, first_row=rank)
engine.sync(1)
engine.generate(prompts[rank : rank + 1], Sampling(max_tokens=8), seed=6, first_row=rank)
message = ""
try:
    engine.sync(2)
except RunError as error:
    message = str(error)
Path(out, f"{rank}.json").write_text(
    json.dumps(
        {"rows": [r.row for r in rollouts], "label": engine.weights_label, "version": engine.version, "error": message}
    )
)
engine.close()
dist.destroy_process_group()
