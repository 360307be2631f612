"""Keys that are the same in every process of a test run, where they are part of a test's name."""

import hashlib


def known_key(name: str) -> str:
    return "vold_" + hashlib.sha256(name.encode()).hexdigest()[:43]
