"""Names of rows and seeds of samples follow from the data and the run's seed alone."""

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from vold_trainer.coldstart.names import RowNames
from vold_trainer.data import Example
from vold_trainer.data.keys import row_keys


def example(name: str, prompt: str = "1 + 1", where: str = "") -> Example:
    return Example(name, ({"role": "user", "content": prompt},), "2", where=where)


def names_of(examples: list[Example], offset: int = 0) -> list[str]:
    names = RowNames(0, offset)
    assert list(names.counted(examples)) == examples
    return [names.name(index, each) for index, each in enumerate(examples)]


@given(st.lists(st.sampled_from("abcdef"), max_size=12))
def test_rows_with_ids_have_the_names_by_which_runs_know_them(ids):
    examples = [example(name) for name in ids]
    assert names_of(examples) == row_keys(examples)


def test_a_row_without_an_id_is_known_by_its_position_and_its_content():
    rows = [example(f"x.jsonl:{n}", f"{n} + 1", f"x.jsonl:{n}") for n in (1, 2, 3)]
    names = names_of(rows)
    assert [re.fullmatch(r"row-(\d)-[0-9a-f]{12}", name)[1] for name in names] == ["0", "1", "2"]
    moved = [replace(row, id=f"y.jsonl:{n}", where=f"y.jsonl:{n}") for n, row in enumerate(rows)]
    assert names_of(moved) == names
    assert names_of(rows[1:], offset=1) == names[1:]
    changed = [rows[0], replace(rows[1], reference="3"), rows[2]]
    assert [a == b for a, b in zip(names_of(changed), names, strict=True)] == [True, False, True]


def test_every_sample_of_every_row_has_a_seed_of_its_own():
    names, other = RowNames(0, 0), RowNames(1, 0)
    seeds = {each.seed_of(row, sample) for each in (names, other) for row in ("a", "b", "a:1") for sample in range(4)}
    assert len(seeds) == 2 * 3 * 4
    assert all(0 <= seed < 2**64 for seed in seeds)
