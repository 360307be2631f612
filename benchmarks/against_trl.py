"""A GRPO step beside one of TRL's GRPOTrainer with transformers generation: the same model, prompts, group and reward.

python benchmarks/against_trl.py

Both train in this process on one thread, in turns, with one update a step over all completions in one pass, float32,
no KL and a learning rate that changes nothing, so that all steps are alike. TRL's reward is the verifier's own code,
called in this process; ours asks the verifier's service. "fixed": a random model that has no end, so that every
completion has as many tokens as are allowed. "trained": the pocket world's text model, which ends when it is done.
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
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
)
from transformers.utils import logging as transformers_logging
from vold_trainer.config import StudentConfig, TrainConfig, VerifierConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.world import examples
from vold_trainer.services.local import open_services
from vold_trainer.student.models import load_student
from vold_trainer.terminal import quiet
from vold_trainer.training.train import run_train
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.numeric import NumericParameters, NumericVerifier

PROMPTS, GROUP = 16, 8
POOL = 256
WARM = 1
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""What transformers calls it, the newer name first."""
PARTS = ("generate", "reward", "optimise", "step")


def fixed_model(folder: Path) -> Path:
    """A random Qwen3 of 0.8 M parameters whose tokenizer's EOS is one that it has no row for."""
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


class Clock:
    """Seconds spent in some of an object's methods, step by step."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def watch(self, owner: Any, method: str, name: str) -> None:
        work = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - began

        setattr(owner, method, timed)


def trl_steps(model: Path, folder: Path, steps: int, tokens: int) -> list[dict[str, float]]:
    """Of each step after the first ones: seconds of its parts, and tokens."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    student = load_student(StudentConfig(path=str(model)))
    prompts = examples("train", POOL, modality="text", offset=3000)
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
    clock, found = Clock(), []
    clock.watch(trainer, "_generate", "generate")
    clock.watch(trainer, "_calculate_rewards", "reward")

    class Steps(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.spent.clear()
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            step = time.perf_counter() - self.began
            rest = step - sum(clock.spent.values())
            found.append({**clock.spent, "optimise": rest, "step": step})

    trainer.remove_callback(PrinterCallback)  # it writes a line a step between the tables
    trainer.add_callback(Steps())
    trainer.train()
    lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "completions/mean_length" in log]
    for step, length in zip(found, lengths, strict=True):
        step["tokens"] = length * PROMPTS * GROUP
    return found[WARM:]


def our_steps(model: Path, folder: Path, steps: int, tokens: int, verifier: str) -> list[dict[str, float]]:
    """The same of `vold train`. reward: what is waited for when nothing is left to draw."""
    run_train(
        load(
            TrainConfig,
            Path("pocket:grpo"),
            [f"out={folder}", f"student.path={model}", "student.freeze=[]", f"steps={steps}", "optim.lr=1e-8",
             f"verifier.url={verifier}", f"rollout.max_tokens={tokens}", f"batch.micro={PROMPTS * GROUP}",
             f"data.limit={POOL}"],
        )
    )  # fmt: skip
    return [
        {
            "generate": step["time/generate"],
            "reward": step["time/score_wait"],
            "optimise": step["time/optimise"],
            "step": step["time/step"],
            "tokens": step["length/mean"] * PROMPTS * GROUP,
        }
        for step in read_json_lines(folder / "metrics.jsonl")[WARM:]
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=4, help="turns of each trainer")
    arguments.add_argument("--steps", type=int, default=4, help="steps a turn that count")
    options = arguments.parse_args()
    quiet()
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
                "TRL": lambda out, m=model, t=tokens: trl_steps(m, out, options.steps + WARM, t),
                "vold": lambda out, m=model, t=tokens: our_steps(m, out, options.steps + WARM, t, url),
            }
            found: dict[str, list[dict[str, float]]] = {who: [] for who in trainers}
            ratios = []
            for number in range(options.rounds):
                turns = {who: run(root / f"{label}-{who}-{number}") for who, run in trainers.items()}
                for who, steps in turns.items():
                    found[who] += steps
                turn = {who: statistics.median(step["step"] for step in steps) for who, steps in turns.items()}
                ratios.append(turn["TRL"] / turn["vold"])
            medians = {
                who: {part: statistics.median(step[part] for step in steps) for part in (*PARTS, "tokens")}
                for who, steps in found.items()
            }
            for who, values in medians.items():
                seconds = [f"{values[part]:.2f}" for part in PARTS]
                rows.append([label, who, f"{values['tokens']:.0f}", *seconds, ""])
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
