"""Code in an interpreter that has imported nothing, and whether it has imported what takes seconds."""

import json
import subprocess
import sys

SLOW = ("torch", "transformers", "accelerate")
FRESH = f"""
import contextlib, io, json, sys
def run(arguments):
    sys.argv = ["vold", *arguments]
    from vold_trainer import cli
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code
    return [status, " ".join(said.getvalue().split()), [name for name in {SLOW} if name in sys.modules]]
"""


def in_a_fresh_interpreter(code: str) -> list:
    """What `code` prints as JSON: nothing that this process has imported is there."""
    done = subprocess.run([sys.executable, "-c", FRESH + code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
