"""A plugin whose import waits while a file `hold` lies beside it, so that a test can end a fork server while it loads.

Copy it into a folder of the test's own. While it waits, a file `loading` lies there too.
"""

import time
from pathlib import Path
from typing import ClassVar, Literal

from vold_verifier.verifiers import Item, Parameters, Verdict, Verifier

HERE = Path(__file__).parent


class AgreeVerifier(Verifier[Parameters]):
    name: ClassVar[str] = "agree-main"
    summary: ClassVar[str] = "agrees"
    deterministic: ClassVar[bool] = False  # no verdict comes from the cache

    def check(self, item: Item, parameters: Parameters, /) -> Verdict:
        return Verdict.right(None, "agreed")


class SandboxedAgreeVerifier(AgreeVerifier):
    name: ClassVar[str] = "agree-sandbox"
    pool: ClassVar[Literal["main", "sandbox", "service"]] = "sandbox"


VERIFIERS = [AgreeVerifier, SandboxedAgreeVerifier]

while (HERE / "hold").exists():
    (HERE / "loading").touch()
    time.sleep(0.01)
