"""What a run trains and tests on: examples, whatever file, data set or world they come from.

    load_examples(DataConfig(source="rows.parquet", columns={"prompt": "question", "reference": "answer"}))

A row goes three ways: `columns` finds its fields, `rows` makes an example of them, `load` decides what a broken one
means for the run.
"""

from vold_trainer.data.examples import Example, Message
from vold_trainer.data.jsonl import read_lines
from vold_trainer.data.load import load_examples
from vold_trainer.data.order import PromptOrder

__all__ = ["Example", "Message", "PromptOrder", "load_examples", "read_lines"]
