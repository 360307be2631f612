"""API keys: which tenant a key stands for, from a file and from the environment, read again when the file changes.

    tenants:
      - name: maths
        weight: 2
        tokens_per_minute: 3000000
        max_concurrent: 32
        max_sequence: 4096
        keys:
          - sha256: 5b0a...          # of a key that `vold-teacher key --tenant maths` printed
            run_id: beta-low         # optional: what this key does is accounted to this run
            expires: 2027-01-31      # optional; without a time zone it is UTC

Both faces ask `Keys.authenticate` before anything of a request is read. Two questions need no key, whether the process
is up and whether it takes work (/healthz and /readyz over HTTP, grpc.health.v1.Health over gRPC), because those who
ask them, balancers and orchestrators, have none. A key that comes along all the same is checked, but on /healthz, so
that a caller learns of a wrong one while it waits for the service. Everything else wants a key: /metrics, the pages for
a browser, and reflection too.

Only digests are kept, in the file and in memory. A plain SHA-256 is enough here, where a password would need a slow,
salted hash: a key is 256 random bits, so there is no list of likely keys to try against a stolen digest.
"""

import base64
import binascii
import datetime
import difflib
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from vold_proto.v1 import status_pb2

from vold_service.errors import ServiceError
from vold_service.tenants import OPEN, Tenant

log = logging.getLogger("vold.keys")

ENVIRONMENT = "VOLD_API_KEYS"
"""tenant:key, several with commas between. These tenants have no limits unless the file names them too."""

PREFIX = "vold_"
SHORTEST_KEY = 24
"""Characters of a key in the environment. Shorter ones are passwords, which a fast hash does not protect."""

CHECK_SECONDS = 1.0
"""How often, at most, the file is looked at."""


class KeysError(ValueError):
    """Keys that cannot be used: the message names the file, the entry, the field and the remedy, and no key."""


def new_key() -> str:
    """A key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _utc(value: object) -> object:
    """A date, or a time without a zone, as UTC."""
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    if isinstance(value, datetime.datetime) and value.tzinfo is None:
        return value.replace(tzinfo=datetime.UTC)
    return value


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeyEntry(_Entry):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    run_id: str = Field(default="", max_length=200)
    expires: Annotated[datetime.datetime | None, BeforeValidator(_utc)] = None


class TenantEntry(_Entry):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    max_concurrent: int | None = Field(default=None, ge=1)
    max_sequence: int | None = Field(default=None, ge=2)
    admin: bool = False
    keys: list[KeyEntry] = []

    def tenant(self) -> Tenant:
        return Tenant(**self.model_dump(exclude={"keys"}))


class KeysFile(_Entry):
    tenants: list[TenantEntry]


@dataclass(frozen=True, slots=True)
class Grant:
    """Whom a key stands for. run_id: the run that the key is for; "" where the caller may name one.
    expires: in seconds since 1970; None for never.
    """

    tenant: Tenant
    run_id: str = ""
    expires: float | None = None


EVERYBODY = Grant(OPEN)

_REMEDY = "send one as 'authorization: Bearer KEY'; a trainer takes it from the environment variable in api_key_env"


@dataclass(slots=True)
class Keys:
    """The keys of a service. file: None for none. Without a file and without keys in the environment everybody is
    let in, as the tenant `OPEN`. Raises KeysError where the keys cannot be used.
    """

    file: Path | None = None
    environment: str = ""
    _grants: dict[bytes, Grant] = field(init=False, default_factory=dict)
    _signature: tuple[int, ...] | None = field(init=False, default=None)
    _checked: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._signature = self._look()
        self._checked = time.monotonic()
        self._grants = self._read()

    @classmethod
    def of(cls, file: Path | None, environ: Mapping[str, str] | None = None) -> "Keys":
        """From a file, and from VOLD_API_KEYS in `environ` (the process's own where absent)."""
        return cls(file, (os.environ if environ is None else environ).get(ENVIRONMENT, ""))

    @property
    def open(self) -> bool:
        """Whether callers need no key."""
        return self.file is None and not self.environment

    def authenticate(self, header: str | None, *, basic: bool = False) -> Grant:
        """Whom the value of an `authorization` header stands for. basic: take a key as the password of HTTP Basic too.

        Raises UNAUTHENTICATED where it is nobody.
        """
        if self.open:
            return EVERYBODY
        self._refresh()
        if not header:
            raise _refused(f"this service wants an API key: {_REMEDY}")
        key = _key_in(header, basic)
        if not key:
            raise _refused(f"the authorization header holds no API key: {_REMEDY}")
        offered = digest_of(key)
        grant: Grant | None = None
        for known, candidate in self._grants.items():
            # All of them, each in constant time: how long it takes tells nothing about the digests here.
            if hmac.compare_digest(known, offered):
                grant = candidate
        if grant is None:
            raise _refused(
                "the API key is not one of this service's: check that it is whole, or ask the operator for a new one"
            )
        if grant.expires is not None and time.time() >= grant.expires:
            when = datetime.datetime.fromtimestamp(grant.expires, datetime.UTC)
            raise _refused(f"the API key expired on {when:%Y-%m-%d %H:%M} UTC: ask the operator for a new one")
        return grant

    def reload(self) -> None:
        """Read the file again. Where it cannot be used, the keys stay as they are, and the log says why."""
        self._checked = time.monotonic()
        signature = self._look()
        try:
            grants = self._read()
        except KeysError as error:
            log.error("the API keys stay as they were: %s", error)
        else:
            self._grants = grants
            log.info("read %d API keys", len(grants))
        self._signature = signature

    def _refresh(self) -> None:
        if self.file is None or time.monotonic() - self._checked < CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        if self._look() != self._signature:
            self.reload()

    def _look(self) -> tuple[int, ...] | None:
        """What changes whenever the file does; None while there is none."""
        try:
            seen = self.file.stat() if self.file is not None else None
        except OSError:
            return None
        return (seen.st_mtime_ns, seen.st_size, seen.st_ino) if seen is not None else None

    def _read(self) -> dict[bytes, Grant]:
        entries = _read_file(self.file) if self.file is not None else []
        grants: dict[bytes, Grant] = {}
        for place, entry in enumerate(entries):
            tenant = entry.tenant()
            for index, key in enumerate(entry.keys):
                digest = bytes.fromhex(key.sha256)
                if digest in grants:
                    raise KeysError(
                        f"{self.file}: tenants[{place}].keys[{index}] is the same key as one of "
                        f"{grants[digest].tenant.name!r}: give each caller a key of its own"
                    )
                grants[digest] = Grant(tenant, key.run_id, key.expires.timestamp() if key.expires else None)
        named = {entry.name: entry.tenant() for entry in entries}
        for name, secret in _in_environment(self.environment):
            grants.setdefault(digest_of(secret), Grant(named.get(name) or Tenant(name)))
        return grants


def require_admin(tenant: Tenant, what: str) -> None:
    """Raise PERMISSION_DENIED where the tenant is none that administers the service."""
    if not tenant.admin:
        raise ServiceError(
            status_pb2.PERMISSION_DENIED,
            f"{what} is for administrators, and the tenant {tenant.name!r} is none: use a key of a tenant with "
            "'admin: true' in the keys file",
        )


def describe_new_key(tenant: str, run_id: str = "", expires: str = "") -> str:
    """A new key, shown this once, and the lines for the keys file. Raises KeysError where an argument is unfit."""
    key = new_key()
    entry: dict[str, Any] = {"sha256": digest_of(key).hex()}
    entry |= {name: value for name, value in (("run_id", run_id), ("expires", expires)) if value}
    content = {"tenants": [{"name": tenant, "keys": [entry]}]}
    _validate(content, "the new key")
    lines = yaml.safe_dump(content, sort_keys=False)
    return f"{key}\n\n# The key above is shown this once. The service keeps its digest; lines for --api-keys:\n{lines}"


def _key_in(header: str, basic: bool) -> str:
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _refused(message: str) -> ServiceError:
    return ServiceError(status_pb2.UNAUTHENTICATED, message)


def _in_environment(text: str) -> list[tuple[str, str]]:
    pairs = []
    for place, part in enumerate(filter(None, (part.strip() for part in text.split(",")))):
        name, colon, key = part.partition(":")
        if not colon or not name or len(key) < SHORTEST_KEY:
            raise KeysError(
                f"{ENVIRONMENT}: entry {place} is not TENANT:KEY with a key of at least {SHORTEST_KEY} characters: "
                "separate entries by commas, and make keys with `vold-teacher key --tenant NAME`"
            )
        _validate({"tenants": [{"name": name}]}, f"{ENVIRONMENT}, entry {place}")
        pairs.append((name, key))
    return pairs


def _read_file(file: Path) -> list[TenantEntry]:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise KeysError(f"{file}: cannot be read ({error.strerror}): give the path of a keys file") from error
    except UnicodeDecodeError as error:
        raise KeysError(f"{file}: is not text in UTF-8: a keys file is YAML or JSON") from error
    except yaml.YAMLError as error:
        # Not the library's whole message, which quotes the line: it may hold a key.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise KeysError(f"{file}{where}: is neither YAML nor JSON: see the example in the guide") from None
    if not isinstance(content, dict):
        raise KeysError(f"{file}: holds no mapping: it begins with 'tenants:', and a list of tenants")
    return _validate(content, str(file)).tenants


def _validate(content: Mapping[str, Any], where: str) -> KeysFile:
    try:
        file = KeysFile.model_validate(content)
    except ValidationError as error:
        raise KeysError("\n".join(_explain(item, where) for item in error.errors(include_url=False))) from None
    seen: set[str] = set()
    for place, tenant in enumerate(file.tenants):
        if tenant.name in seen:
            raise KeysError(
                f"{where}: tenants[{place}].name is {tenant.name!r}, which is there before: put its keys in one entry"
            )
        seen.add(tenant.name)
    return file


_FORMS = {
    "name": "is not 1 to 64 letters, digits, dots, underscores and dashes, the first a letter or a digit",
    "sha256": "is not 64 hexadecimal digits in lower case: a key is kept as its SHA-256; "
    "`vold-teacher key --tenant NAME` prints a new one with its lines for this file",
    "expires": "is no date and no time: write 2027-01-31, or 2027-01-31T12:00:00+01:00",
}
"""What is wrong with a field whose value may be a key in the wrong place, and is not shown."""


def _explain(item: Any, where: str) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
    last = str(item["loc"][-1]) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        kind = KeyEntry if "keys" in item["loc"][:-1] else TenantEntry if len(item["loc"]) > 1 else KeysFile
        near = difflib.get_close_matches(last, kind.model_fields, n=1)
        # A name is shown only where it is near to one of ours: it may be a key in the wrong place.
        hint = f"did you mean {near[0]!r}?" if near else f"the fields here are {', '.join(kind.model_fields)}"
        return f"{where}: {path if near else path.rpartition('.')[0] or 'the file'}: an unknown field; {hint}"
    if item["type"] == "missing":
        return f"{where}: {path} is missing: set it"
    if last in _FORMS:
        return f"{where}: {path} {_FORMS[last]}"
    # Numbers alone: any other value may be a key in the wrong place.
    got = f"; got {item['input']!r}" if isinstance(item["input"], int | float) else ""
    return f"{where}: {path}: {item['msg']}{got}"
