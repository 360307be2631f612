"""Geometry3K (Lu et al. 2021, arXiv:2105.04165) in the format of hiyouga/geometry3k: diagram, question, number."""

from vold_trainer.adapters.base import ASK_ANSWER, Adapter, BenchmarkRow, Question, Wording
from vold_trainer.data import Example

_MARK = "<image>"


def _make_example(row: BenchmarkRow, wording: Wording) -> Example:
    problem = row.text("problem")
    values = row.columns.get("images")
    if not isinstance(values, list | tuple) or not values:
        raise row.error("images", "give a list of pictures")
    if problem.count(_MARK) not in (0, len(values)):
        raise row.error("problem", f"{_MARK} stands in it {problem.count(_MARK)} times, for {len(values)} pictures")
    question = Question()
    images = [row.read_image(value, f"{row.where}: column 'images'") for value in values]
    if _MARK not in problem:
        for image in images:
            question.add_image(image)
    for index, piece in enumerate(problem.split(_MARK)):
        if index:
            question.add_image(images[index - 1])
        question.add_text(piece.strip())
    if wording == "boxed":
        question.add_text(f"\n{ASK_ANSWER}")
    return question.make_example(
        row.optional_text("id") or row.where,
        row.answer("answer", "give the right answer"),
        "math",
        {},
    )


ADAPTER = Adapter(
    "geometry3k", "hiyouga/geometry3k", ("images", "problem", "answer"), _make_example, alternative_columns=("id",)
)
