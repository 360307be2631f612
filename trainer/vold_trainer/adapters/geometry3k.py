"""Geometry3K (Lu et al. 2021, arXiv:2105.04165) as hiyouga/geometry3k lays it out: a diagram, a question, a number."""

from vold_trainer.adapters.base import FREE, Adapter, Question, Row, Wording
from vold_trainer.data import Example

_MARK = "<image>"


def _example(row: Row, wording: Wording) -> Example:
    problem = row.text("problem")
    images = row.columns.get("images")
    if not isinstance(images, list | tuple) or not images:
        raise row.fault("images", "give a list of pictures")
    if problem.count(_MARK) not in (0, len(images)):
        raise row.fault("problem", f"{_MARK} stands in it {problem.count(_MARK)} times, for {len(images)} pictures")
    question = Question()
    pictures = [row.picture(image, f"{row.where}: column 'images'") for image in images]
    if _MARK not in problem:
        for picture in pictures:
            question.picture(picture)
    for index, piece in enumerate(problem.split(_MARK)):
        if index:
            question.picture(pictures[index - 1])
        question.text(piece.strip())
    if wording == "boxed":
        question.text(f"\n{FREE}")
    return question.example(
        row.maybe("id") or row.where,
        row.answer("answer", "give the right answer"),
        "math",
        {},
    )


ADAPTER = Adapter("geometry3k", "hiyouga/geometry3k", ("images", "problem", "answer"), _example, also=("id",))
