"""Problems: reasoning-gym's expressions and answers, in disjoint splits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vold_trainer.pocket.chains import (
    boxed,
    other_teacher_chain,
    signed_terms,
    solution_steps,
    student_chain,
    teacher_chain,
)
from vold_trainer.pocket.problems import SPLITS, Difficulty, sample_problems, score, split_of
from vold_trainer.pocket_building.measure import extract

LONG = Difficulty(min_terms=2, max_terms=6, min_digits=1, max_digits=2)


def test_the_same_arguments_give_the_same_problems_and_an_offset_goes_on_where_they_end() -> None:
    assert sample_problems("train", 30) == sample_problems("train", 30)
    assert sample_problems("train", 30)[20:] == sample_problems("train", 10, offset=20)
    assert sample_problems("train", 30) != sample_problems("train", 30, seed=1)


def test_splits_share_no_expression_across_seeds_and_difficulties() -> None:
    expressions = {
        split: {
            problem.expression
            for seed in (0, 1)
            for difficulty in (Difficulty(), LONG)
            for problem in sample_problems(split, 300, seed=seed, difficulty=difficulty)
        }
        for split in SPLITS
    }
    assert not expressions["train"] & expressions["test"]
    assert not expressions["train"] & expressions["validation"]
    assert not expressions["validation"] & expressions["test"]


def test_the_test_set_holds_500_distinct_problems_of_both_families() -> None:
    test = sample_problems("test", 500)
    assert len({problem.expression for problem in test}) == 500
    assert {problem.family for problem in test} == {"chain_sum", "basic_arithmetic"}


@given(st.text(alphabet="0123456789+-() ", min_size=1))
def test_blanks_do_not_move_an_expression_to_another_split(expression: str) -> None:
    assert split_of(expression) == split_of(expression.replace(" ", ""))


def test_the_scorer_tells_right_from_wrong() -> None:
    for problem in sample_problems("test", 50, difficulty=LONG):
        assert score(problem, problem.answer) == 1.0
        assert score(problem, str(int(problem.answer) + 1)) < 1.0
        assert score(problem, None) == 0.0


def test_difficulty_sets_the_number_of_terms() -> None:
    for problem in sample_problems("train", 50, difficulty=Difficulty(5, 5)):
        assert problem.terms == 5


@pytest.mark.parametrize("chain", [teacher_chain, other_teacher_chain, student_chain])
def test_every_chain_ends_in_the_right_box(chain) -> None:
    for problem in sample_problems("train", 300, difficulty=LONG):
        assert extract(chain(problem)) == problem.answer
        assert chain(problem).endswith(boxed(problem))


def test_every_line_of_a_teacher_chain_is_true() -> None:
    for problem in sample_problems("train", 500, difficulty=LONG):
        body = teacher_chain(problem).removeprefix("<think>").split("</think>")[0]
        restated, *lines = body.split("\n")
        assert restated == problem.expression
        assert len(lines) == len(solution_steps(problem.expression))
        for line in lines:
            left, right = line.split("=")
            assert eval(left) == int(right)
        assert eval(restated) == int(problem.answer)


def test_every_total_of_the_other_teachers_chain_is_true() -> None:
    for problem in sample_problems("train", 500, difficulty=LONG):
        body = other_teacher_chain(problem).removeprefix("<think>").split("</think>")[0]
        heading, first, totals = body.partition(": ")[0], *body.partition(": ")[2].partition(", ")[::2]
        values = {eval(side) for side in heading.split(" = ")}
        assert values == {int(problem.answer)}
        total = int(first)
        for step in totals.split(", "):
            term, claimed = step.split(": ")
            total += int(term)
            assert total == int(claimed)
        assert total == int(problem.answer)


def test_brackets_are_removed_with_their_sign() -> None:
    assert signed_terms("4-(7+-2)+3") == [4, -7, 2, 3]
    assert signed_terms("-1-(2-(3-4))") == [-1, -2, 3, -4]


@pytest.mark.parametrize(
    ("expression", "said"), [("2*3", "more than integers"), ("2+", "not an arithmetic expression")]
)
def test_an_expression_that_is_no_sum_is_refused(expression: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        solution_steps(expression)


def test_bad_arguments_name_the_value_and_the_remedy() -> None:
    with pytest.raises(ValueError, match="split='dev' is unknown; choose one of train"):
        sample_problems("dev", 1)
    with pytest.raises(ValueError, match="family='gcd' is unknown; choose from chain_sum"):
        sample_problems("test", 1, families=("gcd",))
    with pytest.raises(ValueError, match="min_terms=4 and max_terms=3"):
        Difficulty(4, 3)
    with pytest.raises(ValueError, match="raise max_terms or max_digits"):
        sample_problems("test", 500, difficulty=Difficulty(2, 2), families=("chain_sum",))
