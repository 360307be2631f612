"""Runs a module as in a container that allows neither namespaces nor Landlock, and has no capability.

python bare_container.py MODULE ARGUMENT...
"""

import runpy
import sys

from vold_verifier.sandbox import kernel, seccomp

if __name__ == "__main__":
    kernel.drop_capabilities()
    machine = seccomp._Filter()
    machine.refuse(["unshare", "landlock_create_ruleset"])
    machine.load()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
