"""Items for the verifier: what an example says of its verifier comes before the config."""

from vold_client import Item
from vold_trainer.data import Example
from vold_trainer.services.items import verifier_item


def example(**meta):
    return Example("row-1", ({"role": "user", "content": "1 + 1?"},), "2", meta=meta)


def test_an_example_that_names_no_verifier_gets_the_one_of_the_config():
    expected = Item("math", "It is 2", "2", prompt="1 + 1?", parameters={"percent": True}, id="0:0")
    assert verifier_item(example(), "It is 2", "math", {"percent": True}, "0:0") == expected


def test_an_example_may_name_its_verifier_and_its_parameters():
    item = verifier_item(example(verifier="numeric", parameters={}), "It is 2", "math", {"percent": True})
    assert (item.verifier, item.parameters, item.id) == ("numeric", {}, "")
