"""Parses the addresses of upstream servers that `--model` takes."""

import re

DIALECT_NAMES = ("vllm", "sglang")
URL = re.compile(r"(?:(?P<dialect>\w+)\+)?(?P<rest>https?://[^/\s]+(?:/\S*)?)$")


def parse_urls(text: str) -> tuple[str, list[str]]:
    """ "vllm+http://a:8000,b:8000" to ("vllm", ["http://a:8000", "http://b:8000"]). Raises ValueError with one line."""
    form = "write for example vllm+http://host:8000 or sglang+https://one:30000,two:30000"
    dialect = scheme = ""
    urls: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = URL.match(part if "://" in part else f"{dialect}+{scheme}://{part}" if scheme else part)
        if match is None or (match["dialect"] or dialect) not in DIALECT_NAMES:
            raise ValueError(f"--model {part!r} is no address of an upstream server: {form}")
        if dialect and (match["dialect"] or dialect) != dialect:
            raise ValueError(f"--model mixes {dialect} and {match['dialect']}: replicas are servers of one kind")
        if match["rest"].rstrip("/").endswith("/v1"):
            raise ValueError(f"--model {part!r} ends in /v1, which the teacher adds to it: leave that out")
        dialect = match["dialect"] or dialect
        scheme = match["rest"].partition(":")[0]
        urls.append(match["rest"].rstrip("/"))
    if not urls:
        raise ValueError(f"--model is empty: {form}")
    if len(set(urls)) != len(urls):
        raise ValueError("--model names a replica twice: name each once")
    return dialect, urls
