"""How much of a completion's k2 do the marks of its thought take, when Qwen2.5's tokenizer meets Qwen3's?

python benchmarks/thought_marks.py

Three tiny models with the real ids of both tokenizers (152k rows) learn the same answers, `<think>`, a sum, `</think>`,
the result: the teacher in Qwen3's ids; a student in Qwen2.5's, which spells the marks; and that student with
`add_tokens`. Both students learn for fewer steps than the teacher. Then each samples completions, and k2 is reckoned
from the teacher's log-probabilities:

- spelled: the student's ids go to the teacher as they are
- translated: the teacher gets its own tokens in their place, and the pieces have no k2 (the way without add_tokens)
- added: the student has the tokens, and the ids are the same

What it leaves out: real models. Qwen3-8B's own gap at a mark may be smaller or larger than that of a model which has
seen nothing but such answers.
"""

import argparse
import math
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import show
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.rollout.hf import generate
from vold_trainer.scoring.handshake import compare_vocabularies, vocabulary
from vold_trainer.scoring.teacher_view import Translation
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import CompletionScorer, Student, load_student

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))

from qwen_tokenizers import qwen
from tiny_students import QWEN_TEXT_TEMPLATE, tiny_student

ROWS = 151_936
MARKS = ("<think>", "</think>")
SAMPLE = 2048
"""Ids outside the answers that a step's partition function has."""
WORDS = ("so", "then", "well", "first", "now", "here", "thus", "hence")


def example(a: int, b: int) -> Example:
    return Example(f"{a}+{b}", ({"role": "user", "content": f"What is {a} plus {b}?"},), str(a + b))


def answer(a: int, b: int, draw: random.Random) -> str:
    said = f"{draw.choice(WORDS)} {a} plus {b} {draw.choice(('is', 'makes', 'gives'))} {a + b}"
    return f"<think>\n{said}.\n</think>\n\nThe answer is \\boxed{{{a + b}}}."


def learned(folder: Path, steps: int, batch: int, add_tokens: str | None, seed: int) -> Student:
    """The model of a folder after `steps` steps on such answers.

    The partition function is that of the ids in use and of a sample of the others, weighed up to their number: over all
    rows a step takes seconds.
    """
    student = load_student(StudentConfig(path=str(folder), freeze=[], add_tokens=add_tokens))
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    texts = [answer(a, b, draw) for a in range(1, 10) for b in range(1, 10) for _ in range(4)]
    used = sorted(
        {token for text in texts for token in student.shield.marks.completion_ids(text)} | {student.eos_ids[0]}
    )
    place_V = torch.full((ROWS,), -1)
    place_V[used] = torch.arange(len(used))
    rows_VH = student.model.get_output_embeddings().weight
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for step in range(steps):
        sums = [(draw.randrange(1, 10), draw.randrange(1, 10)) for _ in range(batch)]
        ids = [[*student.shield.marks.completion_ids(answer(a, b, draw)), student.eos_ids[0]] for a, b in sums]
        inputs = make_batch(student, [example(a, b) for a, b in sums], ids)
        hidden_NH = student.model.base_model(**inputs.inputs).last_hidden_state[inputs.predicts_BS]
        sample = torch.randint(ROWS, (SAMPLE,), generator=generator)
        sample = sample[place_V[sample] < 0]
        logits_NU = hidden_NH @ rows_VH[used].T
        others_N = (hidden_NH @ rows_VH[sample].T).logsumexp(-1) + math.log((ROWS - len(used)) / len(sample))
        log_z_N = torch.logaddexp(logits_NU.logsumexp(-1), others_N)
        loss = (log_z_N - logits_NU.gather(-1, place_V[inputs.ids_N].unsqueeze(-1)).squeeze(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"{folder.name}: step {step + 1}, loss {loss.item():.3f}", file=sys.stderr)
    return student


@torch.no_grad()
def logprobs(student: Student, examples: list[Example], ids: list[list[int]]) -> list[Tensor]:
    scores = []
    for one, completion in zip(examples, ids, strict=True):
        batch = make_batch(student, [one], [completion])
        scores.append(CompletionScorer(student.model)(batch.inputs, batch.predicts_BS, batch.ids_N).logprobs_N)
    return scores


def translation(student: Student, teacher: Student) -> Translation:
    own, other = vocabulary(student.tokenizer), vocabulary(teacher.tokenizer)
    shared_V = compare_vocabularies(own, other, min_shared=0.9, size=ROWS).shared_V
    return Translation(student.tokenizer.backend_tokenizer, teacher.tokenizer.backend_tokenizer, shared_V, ROWS)


def measure(
    name: str, student: Student, teacher: Student, translate: Translation, count: int, translated: bool
) -> list[str]:
    """A row of the table: how, k2 of a completion, the share of the marks, the largest gap at a mark, masked tokens."""
    draw = random.Random(7)
    examples = [example(draw.randrange(1, 10), draw.randrange(1, 10)) for _ in range(count)]
    rollouts = generate(student, examples, max_tokens=64, seed=0)
    ids = [list(rollout.ids) for rollout in rollouts]
    views = [translate(completion) for completion in ids]
    own = logprobs(student, examples, ids)
    if translated:
        given = logprobs(teacher, examples, [view.ids for view in views])
        theirs = [view.of_student(value.numpy()) for view, value in zip(views, given, strict=True)]
    else:
        theirs = [value.numpy() for value in logprobs(teacher, examples, ids)]
    of_marks, whole, largest, masked = 0.0, 0.0, 0.0, 0
    kept_marks = set(student.tokenizer.convert_tokens_to_ids(list(MARKS)))
    for completion, view, mine, their in zip(ids, views, own, theirs, strict=True):
        gap_T = their - mine.numpy()
        mark_T = (view.position_T < 0) | np.isin(completion, list(kept_marks))
        masked += int(np.isnan(gap_T).sum())
        k2_T = np.nan_to_num(0.5 * gap_T**2)
        of_marks, whole = of_marks + k2_T[mark_T].sum(), whole + k2_T.sum()
        largest = min(largest, np.nan_to_num(gap_T[mark_T]).min(initial=0.0))
    return [
        name,
        f"{whole / count:.1f}",
        f"{of_marks / whole:.1%}",
        f"{largest:.1f}",
        f"{masked / count:.1f}",
        f"{sum(map(len, ids)) / count:.1f}",
    ]


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=qwen(name),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=QWEN_TEXT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of the teacher; the students take two thirds")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--completions", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        teacher_folder, student_folder = Path(folder) / "teacher", Path(folder) / "student"
        tiny_student("qwen3", teacher_folder, tokenizer("qwen3"), seed=1, vocab_size=ROWS)
        tiny_student("qwen3", student_folder, tokenizer("qwen2.5"), seed=2, vocab_size=ROWS)
        teacher = learned(teacher_folder, options.steps, options.batch, None, 1)
        spelling = learned(student_folder, 2 * options.steps // 3, options.batch, None, 2)
        knowing = learned(student_folder, 2 * options.steps // 3, options.batch, str(teacher_folder), 2)
    count = options.completions
    spelled, added = translation(spelling, teacher), translation(knowing, teacher)
    show(
        "k2 of a completion in the marks of its thought",
        ["the marks are", "k2", "of it in the marks", "largest gap there", "tokens without a term", "tokens"],
        [
            measure("spelled, and sent so", spelling, teacher, spelled, count, False),
            measure("spelled, and translated for the teacher", spelling, teacher, spelled, count, True),
            measure("added to the student", knowing, teacher, added, count, True),
        ],
    )


if __name__ == "__main__":
    main()
