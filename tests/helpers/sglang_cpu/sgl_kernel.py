"""Lets SGLang start where its kernels for CPUs are not: they are on no package index, and need AMX.

SGLang imports names from here at the top of its modules. Without AMX it takes code of its own in plain torch wherever
these tests lead, and each of these names raises once it is called.
"""

from typing import NoReturn


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} is not here")

    return missing
