"""Loading the examples of a config: from a file or a data set, by its columns or by an adapter, or the pocket world."""

from vold_trainer.sources.examples import each_example, load_examples

__all__ = ["each_example", "load_examples"]
