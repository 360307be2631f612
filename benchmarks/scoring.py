"""What the service adds: scoring through gRPC against a bare forward in this process, same sequences, one thread each.

python benchmarks/scoring.py
"""

import statistics
import time

import torch
from common import POCKET_TEACHER, sequences, serving, show
from transformers import AutoModelForCausalLM
from vold_client import Completion, TeacherClient

ROUNDS = 7


def bare(model: torch.nn.Module, prompts: list, completions: list, batch: int = 32) -> None:
    """A padded forward over whole sequences with log-probabilities gathered: what one writes without a service."""
    rows = sorted([[*prompts[p].tolist(), *ids.tolist()] for p, ids in completions], key=len)
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            width = max(map(len, part))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in part])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
            logits = model(ids, attention_mask=mask).logits[:, :-1]
            logits.log_softmax(-1).gather(-1, ids[:, 1:, None])


def main() -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(POCKET_TEACHER, dtype=torch.float32).eval()
    rows = []
    with (
        serving("teacher", "--model", str(POCKET_TEACHER), "--threads", "1", "--cache-bytes", "0") as urls,
        TeacherClient(urls["grpc"]) as client,
    ):
        for prompt, completion in ((100, 25), (50, 50), (25, 100)):
            prompts, completions = sequences(100, 16, 8, prompt, completion)
            asked = [Completion(p, ids) for p, ids in completions]
            tokens = sum(len(ids) for _, ids in completions)
            times: dict[str, list[float]] = {"bare": [], "service": []}
            for _ in range(ROUNDS):
                started = time.perf_counter()
                bare(model, prompts, completions)
                middle = time.perf_counter()
                client.score(prompts, asked)
                times["bare"].append(middle - started)
                times["service"].append(time.perf_counter() - middle)
            mine, theirs = (statistics.median(times[name]) for name in ("service", "bare"))
            rows.append(
                [
                    f"{prompt}:{completion}",
                    f"{tokens / theirs:,.0f}",
                    f"{tokens / mine:,.0f}",
                    f"{theirs / mine:.2f}x",
                ]
            )
    columns = ["prompt : completion", "bare forward, tok/s", "service, tok/s", "service / bare"]
    show(f"Completion tokens scored a second, 16 prompts x 8 completions, median of {ROUNDS}", columns, rows)


if __name__ == "__main__":
    main()
