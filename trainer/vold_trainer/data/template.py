"""A row's prompt, written by a template over its columns: "{{problem}}\\nPut the answer in \\\\boxed{}."."""

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vold_trainer.data.quoting import list_names
from vold_trainer.errors import UsageError


class PromptTemplate:
    """A Jinja template over the columns of a row. It runs in Jinja's sandbox: it reads values and calls no method that
    changes one. columns: those that it names.
    """

    def __init__(self, text: str) -> None:
        """Raises UsageError for a text that is no template."""
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        try:
            self._template = environment.from_string(text)
            self.columns = tuple(
                sorted(meta.find_undeclared_variables(environment.parse(text)) - {*environment.globals})
            )
        except TemplateError as error:
            raise UsageError(
                f"data.template is no Jinja template ({error}): write {{{{column}}}} for a column"
            ) from error

    def render(self, row: Mapping[str, Any]) -> str:
        """The prompt of a row. Raises ValueError that says why there is none."""
        missing = [name for name in self.columns if name not in row]
        if missing:
            raise ValueError(f"names the column {missing[0]!r}, and the row has {list_names(list(row))}")
        empty = [name for name in self.columns if row[name] is None]
        if empty:
            raise ValueError(f"names the column {empty[0]!r}, which is null here")
        try:
            text = self._template.render(row)
        except Exception as error:  # a template calls what the values have
            raise ValueError(f"cannot be filled in ({type(error).__name__}: {str(error)[:80]})") from error
        if not text.strip():
            raise ValueError("gives an empty prompt")
        return text
