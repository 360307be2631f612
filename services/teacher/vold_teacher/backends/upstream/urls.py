"""Addresses of upstream servers, as `--model` takes them."""

import re

DIALECT_NAMES = ("vllm", "sglang")
URL = re.compile(r"(?:(?P<dialect>\w+)\+)?(?P<rest>https?://[^/\s]+(?:/\S*)?)$")


def parse_urls(text: str) -> tuple[str, list[str]]:
    """ "vllm+http://a:8000,b:8000" to ("vllm", ["http://a:8000", "http://b:8000"]). Raises ValueError with one line."""
    form = "write for example vllm+http://host:8000 or sglang+https://one:30000,two:30000"
    dialect = scheme = ""
    urls: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = URL.match(part if "://" in part else f"{dialect}+{scheme}://{part}" if scheme else part)
        if found is None or (found["dialect"] or dialect) not in DIALECT_NAMES:
            raise ValueError(f"--model {part!r} is no address of an upstream server: {form}")
        if dialect and (found["dialect"] or dialect) != dialect:
            raise ValueError(f"--model mixes {dialect} and {found['dialect']}: replicas are servers of one kind")
        dialect = found["dialect"] or dialect
        scheme = found["rest"].partition(":")[0]
        urls.append(found["rest"].rstrip("/"))
    if not urls:
        raise ValueError(f"--model is empty: {form}")
    if len(set(urls)) != len(urls):
        raise ValueError("--model names a replica twice: name each once")
    return dialect, urls
