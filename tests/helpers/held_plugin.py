"""A plugin whose import waits while a file `hold` lies beside it, so that a test can end a fork server while it loads.

Copy it into a folder of the test's own, as held_main.py or held_sandbox.py: the name says the pool of its verifier
`agree`. While the import waits, a file `loading` lies there too.
"""

import time
from pathlib import Path
from typing import Any, ClassVar

from vold_verifier.verifiers import Item, Parameters, Verdict, Verifier

HERE = Path(__file__).parent


class AgreeVerifier(Verifier[Parameters]):
    name: ClassVar[str] = "agree"
    summary: ClassVar[str] = "agrees"
    pool: ClassVar[Any] = __name__.removeprefix("held_")
    deterministic: ClassVar[bool] = False  # no verdict comes from the cache

    def check(self, item: Item, parameters: Parameters, /) -> Verdict:
        return Verdict.right(None, "agreed")


VERIFIERS = [AgreeVerifier]

while (HERE / "hold").exists():
    (HERE / "loading").touch()
    time.sleep(0.01)
