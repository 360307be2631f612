"""The order of traces, which follows from their ids, and the keys of rows."""

from hypothesis import given, settings
from hypothesis import strategies as st
from vold_trainer.data import Example, TraceOrder
from vold_trainer.data.keys import row_keys, unique_names

KEYS = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=30, unique=True)


def epochs(keys, seed, count=2):
    """The keys of each epoch in their order."""
    order = TraceOrder(keys, 1, seed)
    return [[keys[order.indices(epoch * len(keys) + step)[0]] for step in range(len(keys))] for epoch in range(count)]


@given(keys=KEYS, seed=st.integers(0, 9), data=st.data())
@settings(max_examples=30)
def test_two_traces_come_in_the_same_order_whatever_else_is_in_the_file(keys, seed, data):
    others = data.draw(st.permutations([key for key in keys if data.draw(st.booleans())] or keys))
    for whole, part in zip(epochs(keys, seed), epochs(others, seed), strict=True):
        assert [key for key in whole if key in others] == part


@given(keys=KEYS, seed=st.integers(0, 9), per_step=st.integers(1, 7))
@settings(max_examples=30)
def test_every_epoch_takes_every_trace_once(keys, seed, per_step):
    order = TraceOrder(keys, per_step, seed)
    taken = [index for step in range(2 * len(keys)) for index in order.indices(step)]
    for epoch in range(2 * per_step):
        assert sorted(taken[epoch * len(keys) : (epoch + 1) * len(keys)]) == list(range(len(keys)))


def test_seeds_and_epochs_have_orders_of_their_own():
    keys = [f"trace-{number}" for number in range(20)]
    orders = [tuple(order) for seed in range(3) for order in epochs(keys, seed, 3)]
    assert len(set(orders)) == 9


def row(name, where):
    return Example(name, ({"role": "user", "content": "1"},), "1", where=where)


def test_a_row_without_an_id_goes_by_its_number_so_that_its_file_may_move():
    here, there = (row_keys([row(f"{folder}:{n}", f"{folder}:{n}") for n in (1, 2)]) for folder in ("a/t", "b/t"))
    assert here == there
    assert len(set(here)) == 2
    assert row_keys([row("x", "a/t:1"), row("y", "a/t:2")]) == ["x", "y"]


@given(names=st.lists(st.sampled_from(["a", "b", "a#2", "a#3", "row 0"]), max_size=12))
@settings(max_examples=40)
def test_repeated_names_become_unique_and_the_first_keeps_its_own(names):
    unique = unique_names(names)
    assert len(set(unique)) == len(names)
    assert all(found == name or found.startswith(f"{name}#") for found, name in zip(unique, names, strict=True))
    assert unique[:1] == names[:1]
