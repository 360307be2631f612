"""API keys and the tenants they belong to, from a file and from the environment. The file is reloaded when it changes.

    tenants:
      - name: maths
        weight: 2
        tokens_per_minute: 3000000
        max_concurrent: 32
        max_sequence: 4096
        keys:
          - sha256: 5b0a...          # of a key that `vold-teacher key --tenant maths` printed
            run_id: beta-low         # optional: requests with this key are accounted to this run
            expires: 2027-01-31      # optional; without a time zone it is UTC

Both faces call `Keys.authenticate` before they read a request. Liveness and readiness need no key (/healthz and /readyz
over HTTP, grpc.health.v1.Health over gRPC), because load balancers and orchestrators have none. If a caller sends a key
there all the same, the key is checked, except on /healthz: a caller that waits for the service then sees that its key
is wrong. Every other path and method needs a key, including /metrics, the pages for a browser, and reflection.

The file and the memory of the service hold digests of keys only. A plain SHA-256 is enough, where a password would need
a slow, salted hash: a key is 256 random bits, so no list of likely keys exists to try against a stolen digest.
"""

import base64
import binascii
import datetime
import difflib
import hashlib
import hmac
import logging
import os
import re
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
from vold_service.tenants import OPEN_TENANT, Tenant

log = logging.getLogger("vold.keys")

KEYS_VARIABLE = "VOLD_API_KEYS"
"""tenant:key, several separated by commas. These tenants have no limits unless the file names them too."""

METRICS_VARIABLE = "VOLD_METRICS_KEY"
"""A key of a tenant that sees the metrics of all tenants, beside the keys of KEYS_VARIABLE or of the file."""
METRICS_TENANT = "metrics"

KEY_PREFIX = "vold_"
MIN_KEY_LENGTH = 24
"""Characters of a key in the environment. A shorter key is a password, which a fast hash does not protect."""

_WORD = re.compile(r"[\x21-\x7e]+")
"""What a header can hold as a key."""

CHECK_SECONDS = 1.0
"""The shortest time between two checks whether the file has changed."""


class KeysError(ValueError):
    """Unusable keys. The message names the file, the entry, the field and the remedy, and never a key."""


def new_key() -> str:
    """A key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


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


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Of a tenant, and of a group of tenants."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeyEntry(_Entry):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    run_id: str = Field(default="", max_length=200)
    expires: Annotated[datetime.datetime | None, BeforeValidator(_utc)] = None


class TenantEntry(_Entry):
    name: str = Field(pattern=NAME)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    max_concurrent: int | None = Field(default=None, ge=1)
    max_sequence: int | None = Field(default=None, ge=2)
    admin: bool = False
    metrics: bool = False
    share_cache: str = Field(default="", pattern=NAME)
    keys: list[KeyEntry] = []

    def tenant(self) -> Tenant:
        return Tenant(**self.model_dump(exclude={"keys"}))


class KeysFile(_Entry):
    tenants: list[TenantEntry]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key grants: requests as this tenant. run_id: the run of the key; "" if the caller may name a run.
    expires: in seconds since 1970; None for never.
    """

    tenant: Tenant
    run_id: str = ""
    expires: float | None = None


OPEN_GRANT = Grant(OPEN_TENANT)

_REMEDY = "send one as 'authorization: Bearer KEY'; a trainer takes it from the environment variable in api_key_env"


@dataclass(slots=True)
class Keys:
    """The API keys of a service. file: None for no file. Without a file and without keys in the environment, every
    caller is the tenant `OPEN_TENANT`. Raises KeysError if the keys cannot be used.
    """

    file: Path | None = None
    environment: str = ""
    metrics_key: str = ""
    _grants: dict[bytes, Grant] = field(init=False, default_factory=dict)
    _signature: tuple[int, ...] | None = field(init=False, default=None)
    _checked: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._signature = self._file_signature()
        self._checked = time.monotonic()
        self._grants = self._load_grants()

    @classmethod
    def load(cls, file: Path | None, environ: Mapping[str, str] | None = None) -> "Keys":
        """The keys of a file, and of VOLD_API_KEYS and VOLD_METRICS_KEY in `environ` (None for the process's
        environment).
        """
        variables = os.environ if environ is None else environ
        return cls(file, variables.get(KEYS_VARIABLE, ""), variables.get(METRICS_VARIABLE, "").strip())

    @property
    def open(self) -> bool:
        """Whether callers need no key."""
        return self.file is None and not self.environment

    def authenticate(self, header: str | None, *, basic: bool = False) -> Grant:
        """The grant of the key in an `authorization` header. basic: also accept the key as the password of HTTP Basic.

        Raises UNAUTHENTICATED if the header has no valid key.
        """
        if self.open:
            return OPEN_GRANT
        self._refresh()
        if not header:
            raise _unauthenticated(f"this service wants an API key: {_REMEDY}")
        key = _parse_header(header, basic)
        if not key:
            raise _unauthenticated(f"the authorization header holds no API key: {_REMEDY}")
        digest = digest_of(key)
        grant: Grant | None = None
        for known, candidate in self._grants.items():
            # Compare all digests, each in constant time, so that the time taken reveals nothing about them.
            if hmac.compare_digest(known, digest):
                grant = candidate
        if grant is None:
            raise _unauthenticated(
                "the API key is not one of this service's: check that it is whole, or ask the operator for a new one"
            )
        if grant.expires is not None and time.time() >= grant.expires:
            when = datetime.datetime.fromtimestamp(grant.expires, datetime.UTC)
            raise _unauthenticated(f"the API key expired on {when:%Y-%m-%d %H:%M} UTC: ask the operator for a new one")
        return grant

    def reload(self) -> None:
        """Load the file again. If the file cannot be used, keep the keys as they are and log the reason."""
        self._checked = time.monotonic()
        signature = self._file_signature()
        try:
            grants = self._load_grants()
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
        if self._file_signature() != self._signature:
            self.reload()

    def _file_signature(self) -> tuple[int, ...] | None:
        """Values that differ if the file has changed; None if there is no file."""
        try:
            stat = self.file.stat() if self.file is not None else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat is not None else None

    def _load_grants(self) -> dict[bytes, Grant]:
        entries = _read_file(self.file) if self.file is not None else []
        grants: dict[bytes, Grant] = {}
        for position, entry in enumerate(entries):
            tenant = entry.tenant()
            for index, key_entry in enumerate(entry.keys):
                digest = bytes.fromhex(key_entry.sha256)
                if digest in grants:
                    raise KeysError(
                        f"{self.file}: tenants[{position}].keys[{index}] is the same key as one of "
                        f"{grants[digest].tenant.name!r}: give each caller a key of its own"
                    )
                expires = key_entry.expires.timestamp() if key_entry.expires else None
                grants[digest] = Grant(tenant, key_entry.run_id, expires)
        tenants = {entry.name: entry.tenant() for entry in entries}
        for name, key in _parse_environment(self.environment):
            grants.setdefault(digest_of(key), Grant(tenants.get(name) or Tenant(name)))
        if self.metrics_key:
            if len(self.metrics_key) < MIN_KEY_LENGTH:
                raise KeysError(
                    f"{METRICS_VARIABLE}: the key has fewer than {MIN_KEY_LENGTH} characters: make one with "
                    f"`vold-teacher key --tenant {METRICS_TENANT}`"
                )
            grants.setdefault(digest_of(self.metrics_key), Grant(Tenant(METRICS_TENANT, metrics=True)))
        return grants


def require_admin(tenant: Tenant, action: str) -> None:
    """Raise PERMISSION_DENIED if the tenant is not an administrator. action: the refused action, for the message."""
    if not tenant.admin:
        raise ServiceError(
            status_pb2.PERMISSION_DENIED,
            f"{action} is for administrators, and the tenant {tenant.name!r} is none: use a key of a tenant with "
            "'admin: true' in the keys file",
        )


def outgoing_key(text: str, source: str) -> str:
    """The key that this service sends to another one, without white space around it; "" for none. source: where the
    text is from. Raises KeysError if it is no key: an HTTP client's error about such a header would show it.
    """
    key = text.strip()
    if key and not _WORD.fullmatch(key):
        raise KeysError(f"{source} holds more than an API key, which is one word of ASCII: set it to the key, alone")
    return key


def describe_new_key(tenant: str, run_id: str = "", expires: str = "") -> str:
    """A new key, which is not stored anywhere, and the lines for the keys file. Raises KeysError for a bad argument."""
    key = new_key()
    entry: dict[str, Any] = {"sha256": digest_of(key).hex()}
    entry |= {name: value for name, value in (("run_id", run_id), ("expires", expires)) if value}
    content = {"tenants": [{"name": tenant, "keys": [entry]}]}
    _validate(content, "the new key")
    lines = yaml.safe_dump(content, sort_keys=False)
    return f"{key}\n\n# The key above is shown this once. The service keeps its digest; lines for --api-keys:\n{lines}"


def _parse_header(header: str, basic: bool) -> str:
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _unauthenticated(message: str) -> ServiceError:
    return ServiceError(status_pb2.UNAUTHENTICATED, message)


def _parse_environment(text: str) -> list[tuple[str, str]]:
    pairs = []
    for position, part in enumerate(filter(None, (part.strip() for part in text.split(",")))):
        name, colon, key = part.partition(":")
        if not colon or not name or len(key) < MIN_KEY_LENGTH or not _WORD.fullmatch(key):
            raise KeysError(
                f"{KEYS_VARIABLE}: entry {position} is not TENANT:KEY with a key of at least {MIN_KEY_LENGTH} "
                "characters of ASCII, none of them white space: separate entries by commas, and make keys with "
                "`vold-teacher key --tenant NAME`"
            )
        _validate({"tenants": [{"name": name}]}, f"{KEYS_VARIABLE}, entry {position}")
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
        # Without the library's message, which quotes the line: the line may hold a key.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise KeysError(f"{file}{where}: is neither YAML nor JSON: see the example in the guide") from None
    if not isinstance(content, dict):
        raise KeysError(f"{file}: holds no mapping: it begins with 'tenants:', and a list of tenants")
    return _validate(content, str(file)).tenants


def _validate(content: Mapping[str, Any], source: str) -> KeysFile:
    try:
        file = KeysFile.model_validate(content)
    except ValidationError as error:
        raise KeysError("\n".join(_describe_error(item, source) for item in error.errors(include_url=False))) from None
    seen: set[str] = set()
    for position, tenant in enumerate(file.tenants):
        if tenant.name in seen:
            raise KeysError(
                f"{source}: tenants[{position}].name is {tenant.name!r}, which is there before: put its "
                "keys in one entry"
            )
        seen.add(tenant.name)
    return file


_NAME_ERROR = "is not 1 to 64 letters, digits, dots, underscores and dashes, the first a letter or a digit"
_FIELD_ERRORS = {
    "name": _NAME_ERROR,
    "share_cache": _NAME_ERROR,
    "sha256": "is not 64 hexadecimal digits in lower case: a key is kept as its SHA-256; "
    "`vold-teacher key --tenant NAME` prints a new one with its lines for this file",
    "expires": "is no date and no time: write 2027-01-31, or 2027-01-31T12:00:00+01:00",
}
"""The error of a field whose value is not shown, because the value may be a misplaced key."""


def _describe_error(item: Any, source: str) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
    last = str(item["loc"][-1]) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        kind = KeyEntry if "keys" in item["loc"][:-1] else TenantEntry if len(item["loc"]) > 1 else KeysFile
        near = difflib.get_close_matches(last, kind.model_fields, n=1)
        # The name is shown only if it is close to a known field: it may be a misplaced key.
        hint = f"did you mean {near[0]!r}?" if near else f"the fields here are {', '.join(kind.model_fields)}"
        return f"{source}: {path if near else path.rpartition('.')[0] or 'the file'}: an unknown field; {hint}"
    if item["type"] == "missing":
        return f"{source}: {path} is missing: set it"
    if last in _FIELD_ERRORS:
        return f"{source}: {path} {_FIELD_ERRORS[last]}"
    # Only numbers are shown: any other value may be a misplaced key.
    got = f"; got {item['input']!r}" if isinstance(item["input"], int | float) else ""
    return f"{source}: {path}: {item['msg']}{got}"
