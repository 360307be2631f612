"""A GRPO step of vold and of TRL's GRPOTrainer with transformers generation: same model, prompts, group and reward.

python benchmarks/against_trl.py

Both train in this process on one thread, in alternation, with one policy update per step over all completions in one
pass, float32, no KL, and a learning rate too small to change the model, so that all steps are alike. TRL's reward calls
the verifier's code in this process; vold calls the verifier service. "fixed": a random model without an end token, so
that every completion has the maximum length. "trained": the pocket world's text model, which does end.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of this process and of the services

import torch
from common import POCKET_TEACHER, show
from training import train
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
)
from transformers.utils import logging as transformers_logging
from vold_trainer.config import StudentConfig, VerifierConfig
from vold_trainer.pocket.world import make_examples
from vold_trainer.services.local import open_services
from vold_trainer.student.models import load_student
from vold_trainer.terminal import silence
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.numeric import NumericParameters, NumericVerifier

PROMPTS, GROUP = 16, 8
POOL = 256
WARMUP_STEPS = 1
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""Names of the option in transformers, the newer one first."""
PARTS = ("generate", "reward", "optimise", "step")


def fixed_model(folder: Path) -> Path:
    """A random Qwen3 of 0.8 M parameters that cannot sample its tokenizer's end token."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET_TEACHER)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=512,
            tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    tokenizer.add_special_tokens({"eos_token": "<|never|>"})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class MethodTimer:
    """Seconds spent in chosen methods of an object. seconds: by name, since the last clear."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, owner: Any, method: str, name: str) -> None:
        """Replace `owner`'s method by one that adds its time to `seconds[name]`."""
        work = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

        setattr(owner, method, timed)


def trl_steps(model: Path, folder: Path, steps: int, tokens: int) -> list[dict[str, float]]:
    """The seconds of each part and the tokens, for each step of TRL after the warm-up."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    student = load_student(StudentConfig(path=str(model)))
    prompts = make_examples("train", POOL, modality="text", offset=3000)
    data = Dataset.from_list([{"prompt": student.render(prompt), "reference": prompt.reference} for prompt in prompts])
    verifier, parameters = NumericVerifier(), NumericParameters()

    def reward(completions: list[str], reference: list[str], **_: Any) -> list[float]:
        return [
            float(verifier.check(Item(said, right), parameters).correct)
            for said, right in zip(completions, reference, strict=True)
        ]

    checkpointing = next(name for name in CHECKPOINTING if name in GRPOConfig.__dataclass_fields__)
    config = GRPOConfig(
        output_dir=str(folder), max_steps=steps, use_cpu=True, bf16=False, **{checkpointing: False},
        per_device_train_batch_size=PROMPTS * GROUP, gradient_accumulation_steps=1, num_generations=GROUP,
        max_completion_length=tokens, temperature=1.0, beta=0.0, loss_type="grpo", learning_rate=1e-8,
        logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward, args=config, train_dataset=data, processing_class=tokenizer,
    )  # fmt: skip
    timer, step_times = MethodTimer(), []
    timer.time(trainer, "_generate", "generate")
    timer.time(trainer, "_calculate_rewards", "reward")

    class Steps(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            timer.seconds.clear()
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            step = time.perf_counter() - self.began
            rest = step - sum(timer.seconds.values())
            step_times.append({**timer.seconds, "optimise": rest, "step": step})

    trainer.remove_callback(PrinterCallback)  # it prints a line per step between the tables
    trainer.add_callback(Steps())
    trainer.train()
    lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "completions/mean_length" in log]
    for step, length in zip(step_times, lengths, strict=True):
        step["tokens"] = length * PROMPTS * GROUP
    return step_times[WARMUP_STEPS:]


def vold_steps(model: Path, folder: Path, steps: int, tokens: int, verifier: str) -> list[dict[str, float]]:
    """The same for `vold train`. reward: the time spent only waiting for rewards."""
    settings = [
        f"student.path={model}", "student.freeze=[]", f"verifier.url={verifier}", f"rollout.max_tokens={tokens}",
        f"batch.micro={PROMPTS * GROUP}", f"data.limit={POOL}",
    ]  # fmt: skip
    return [
        {
            "generate": step["time/generate"],
            "reward": step["time/score_wait"],
            "optimise": step["time/optimise"],
            "step": step["time/step"],
            "tokens": step["length/mean"] * PROMPTS * GROUP,
        }
        for step in train("grpo", folder, steps, settings)[WARMUP_STEPS:]
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=4, help="turns of each trainer")
    arguments.add_argument("--steps", type=int, default=4, help="steps a turn that count")
    options = arguments.parse_args()
    silence()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    with (
        tempfile.TemporaryDirectory() as name,
        open_services(teacher=None, verifier=VerifierConfig(url="local:")) as services,
    ):
        root = Path(name)
        url = services.verifier_urls[0]
        for label, model, tokens in (("fixed", fixed_model(root / "model"), 64), ("trained", POCKET_TEACHER, 80)):
            trainers: dict[str, Callable[[Path], list[dict[str, float]]]] = {
                "TRL": lambda out, m=model, t=tokens: trl_steps(m, out, options.steps + WARMUP_STEPS, t),
                "vold": lambda out, m=model, t=tokens: vold_steps(m, out, options.steps + WARMUP_STEPS, t, url),
            }
            all_steps: dict[str, list[dict[str, float]]] = {trainer: [] for trainer in trainers}
            ratios = []
            for number in range(options.rounds):
                turns = {trainer: run(root / f"{label}-{trainer}-{number}") for trainer, run in trainers.items()}
                for trainer, steps in turns.items():
                    all_steps[trainer] += steps
                turn = {trainer: statistics.median(step["step"] for step in steps) for trainer, steps in turns.items()}
                ratios.append(turn["TRL"] / turn["vold"])
            medians = {
                trainer: {part: statistics.median(step[part] for step in steps) for part in (*PARTS, "tokens")}
                for trainer, steps in all_steps.items()
            }
            for trainer, values in medians.items():
                seconds = [f"{values[part]:.2f}" for part in PARTS]
                rows.append([label, trainer, f"{values['tokens']:.0f}", *seconds, ""])
            shares = [
                f"{medians['TRL'][part] / medians['vold'][part]:.1f}x" if part != "reward" else "" for part in PARTS
            ]
            rows.append(
                [
                    label,
                    "TRL / vold",
                    "",
                    *shares,
                    f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})",
                ]
            )
    show(
        f"Seconds a GRPO step, {PROMPTS} prompts x {GROUP} completions, one thread, "
        f"medians of {options.rounds * options.steps} steps",
        ["lengths", "trainer", "tokens", *PARTS, "a turn's step, TRL / vold"],
        rows,
    )


if __name__ == "__main__":
    main()
