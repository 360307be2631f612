"""The memory that `vold sft` takes for its traces, as their number grows.

python benchmarks/sft_memory.py
python benchmarks/sft_memory.py --count 1000 --count 10000 --before ../vold-before

Each measurement is a process of its own that runs `vold sft` for two steps of two traces, with a random student of two
layers and a vocabulary of 4,000 words, on a file of traces of one length. The figures are anonymous memory (RssAnon of
/proc/self/status, sampled every 20 ms) above that of a run on 16 traces: its peak until the first step, or that of the
steps, whichever is more. Mapped files are no part of it, as the kernel takes their pages back when it has to. The first
run on a file encodes it; the second finds it encoded. --before: another checkout, whose `vold sft` is measured too.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MB = 1_000_000
WORDS = [f"w{number}" for number in range(4000)]
FEW = 16
"""Traces of the run that the others are compared with."""


def anonymous_bytes(process: int | str = "self") -> int:
    """The anonymous memory of a process that is resident."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def children() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@contextmanager
def peaks(out: Path) -> Iterator[dict[str, int]]:
    """The peaks of this process's anonymous memory inside the block, before the run into `out` makes its folder and
    from then on, and that of a child.
    """
    found, done = {"loading": 0, "steps": 0, "child": 0}, threading.Event()
    (out / "run.json").unlink(missing_ok=True)

    def sample() -> None:
        while not done.wait(0.02):
            stage = "steps" if (out / "run.json").exists() else "loading"
            found[stage] = max(found[stage], anonymous_bytes())
            found["child"] = max([found["child"], *map(anonymous_bytes, children())])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def make_student(folder: Path, positions: int) -> None:
    """A random student, whose tokenizer has one token for each word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["?", *WORDS])}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} answer: {% endif %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="?", eos_token="<end>", pad_token="<pad>", chat_template=template
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen3Config(
        **shape, num_key_value_heads=1, head_dim=16, vocab_size=len(tokenizer), max_position_embeddings=positions
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_traces(file: Path, count: int, length: int) -> None:
    """Traces of `length` tokens and some."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=length)) for _ in range(64)]
    with file.open("w") as stream:
        for number in range(count):
            row = {"id": f"q{number}", "prompt": f"{number} + 1?", "completion": f"{number} {texts[number % 64]}"}
            stream.write(json.dumps(row) + "\n")


def measure(student: Path, traces: Path, out: Path) -> None:
    """Run `vold sft` in this process, and print what it took."""
    from vold_trainer.coldstart.sft import run_sft
    from vold_trainer.config import SftConfig, load

    settings = [f"out={out}", f"student.path={student}", f"traces={traces}", "student.freeze=[]", "steps=2"]
    settings += ["batch=2", "micro=1", "threads=1", "checkpoints={every: 0, minutes: 0}"]
    started = time.monotonic()
    with peaks(out) as found:
        run_sft(load(SftConfig, None, settings), overwrite=True)
    print(json.dumps({**found, "seconds": time.monotonic() - started}))


def run(student: Path, traces: Path, out: Path, checkout: Path | None = None) -> dict[str, Any]:
    environment = dict(os.environ)
    if checkout is not None:
        rooms = ("proto", "packing", "client", "services/common", "services/teacher", "services/verifier", "trainer")
        environment["PYTHONPATH"] = ":".join(str(checkout.resolve() / room) for room in rooms)
    command = [sys.executable, __file__, "--measure", str(student), str(traces), str(out)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{traces.name} {checkout or 'here'}: {result}", file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, action="append", help="traces; repeatable")
    parser.add_argument("--length", type=int, default=4000, help="tokens of a trace")
    parser.add_argument("--before", type=Path, help="another checkout, to measure beside this one")
    parser.add_argument("--measure", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    from common import show

    with tempfile.TemporaryDirectory(prefix="vold-sft-memory-") as name:
        folder = Path(name)
        student = folder / "student"
        make_student(student, 2 * options.length)

        def measured(count: int) -> tuple[dict[str, Any] | None, dict[str, Any], dict[str, Any], int]:
            file = folder / f"{count}.jsonl"
            write_traces(file, count, options.length)
            before = run(student, file, folder / "run", options.before) if options.before else None
            first, second = run(student, file, folder / "run"), run(student, file, folder / "run")
            disk = sum(path.stat().st_size for path in folder.glob(f"{file.name}.encoded/*/*"))
            return before, first, second, disk

        few = measured(FEW)
        rows = []
        for count in options.count or (1000, 10_000, 35_000):
            before, first, second, disk = measured(count)
            tokens = count * options.length

            def above(result: dict[str, Any] | None, least: dict[str, Any] | None, tokens: int = tokens) -> str:
                if result is None or least is None:
                    return ""
                more = max(result[stage] - least[stage] for stage in ("loading", "steps"))
                return f"{more / MB:,.0f} MB ({more / tokens:.2f})"

            rows.append(
                [
                    f"{count:,}",
                    above(before, few[0]),
                    f"{before['seconds']:.0f} s" if before else "",
                    above(first, few[1]),
                    f"{first['child'] / MB:,.0f} MB" if first["child"] else "none",
                    f"{first['seconds']:.0f} s",
                    above(second, few[2]),
                    f"{second['seconds']:.0f} s",
                    f"{disk / MB:,.0f} MB",
                ]
            )
        columns = ["traces", "before, every process", "", "encoding", "a worker", "", "encoded before", "", "files"]
        show(
            f"Anonymous memory for traces of {options.length:,} tokens above that for {FEW} of them (bytes a token)",
            columns,
            rows,
        )


if __name__ == "__main__":
    main()
