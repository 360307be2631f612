"""Lets vLLM's CPU build run its second model runner: found by Python itself where PYTHONPATH names this folder.

That runner has kernels in Triton, which has no compiler for CPUs but interprets them with TRITON_INTERPRET=1. vLLM asks
whether Triton has a backend called "cpu" before it tries; with this it has one that does nothing but exist. Everything
else is vLLM's own.
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.backends import Backend, backends
    from triton.backends.driver import DriverBase

    class Interpreter(DriverBase):
        @staticmethod
        def is_active() -> bool:
            return True

    backends["cpu"] = Backend(None, Interpreter)
