"""What a run trains and tests on: examples, and the files and data sets whose rows become examples.

A row goes two ways here: `columns` finds its fields, and `rows` makes an example of them. `vold_trainer.sources` picks
the reader that a config asks for.
"""

from vold_trainer.data.examples import Example, Message
from vold_trainer.data.jsonl import read_lines
from vold_trainer.data.order import PromptOrder

__all__ = ["Example", "Message", "PromptOrder", "read_lines"]
