"""Examples, and reading them from files and data sets.

`columns` finds the fields of a row, and `rows` makes an example of them. `vold_trainer.sources` chooses the reader of
a config.
"""

from vold_trainer.data.examples import Example, Message
from vold_trainer.data.jsonl import read_jsonl
from vold_trainer.data.order import PromptOrder, TraceOrder

__all__ = ["Example", "Message", "PromptOrder", "TraceOrder", "read_jsonl"]
