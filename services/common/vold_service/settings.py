"""Settings that all services share. A service adds its own in a subclass."""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from vold_service.errors import shown
from vold_service.keys import Keys
from vold_service.quota import MAX_TENANT_BYTES
from vold_service.tls import Tls

MIB = 1 << 20


class ServerSettings(BaseSettings):
    """Addresses, limits, logging, keys, TLS. Each is also an environment variable: VOLD_ and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="VOLD_", extra="forbid")

    http: str | None = Field(default="127.0.0.1:8000", description="HOST:PORT of the HTTP face; port 0 picks one")
    grpc: str | None = Field(default="127.0.0.1:50051", description="HOST:PORT or unix:PATH of the gRPC face")
    probes: str | None = Field(
        default=None,
        description="HOST:PORT where /healthz and /readyz answer in plain HTTP, for probes without a certificate",
    )
    max_body_bytes: int = Field(default=64 * MIB, ge=1024, description="largest request either face reads")
    max_json_bytes: int = Field(
        default=MIB, ge=1024, description="largest body of JSON; protobuf has the limit of --max-body-bytes"
    )
    max_tenant_bytes: int = Field(
        default=MAX_TENANT_BYTES, ge=MIB, description="bytes of one tenant's requests and replies under way"
    )
    drain_seconds: float = Field(default=20.0, ge=0, description="how long SIGTERM waits for work in flight")
    idle_seconds: float = Field(
        default=30.0, gt=0, description="how long a caller may be silent in the middle of sending a request"
    )
    log_level: str = Field(default="info", description="debug, info, warning or error")
    api_keys_file: Path | None = Field(
        default=None,
        description="YAML file of tenants and the digests of their keys; also VOLD_API_KEYS=TENANT:KEY,...",
    )
    tls_cert: Path | None = Field(default=None, description="PEM file of the certificate both faces show; TLS is on")
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's key, not encrypted")
    tls_client_ca: Path | None = Field(default=None, description="PEM file of the CA that callers' certificates need")

    open: bool = Field(
        default=False, description="serve without keys whoever reaches an address that is not of this machine alone"
    )

    def check_exposure(self, keys: Keys, tls: Tls | None) -> None:
        """Raise ExposureError if other machines reach a face, nobody needs a key or a certificate, and `open` is
        not set.
        """
        if self.open or not keys.open or (tls is not None and tls.client_ca is not None):
            return
        for face, address in (("http", self.http), ("grpc", self.grpc)):
            if address is not None and not is_loopback(address):
                raise ExposureError(
                    f"--{face} {address}: other machines reach this address, and the service has no API keys. Name a "
                    "file of them with --api-keys or set VOLD_API_KEYS (the command `key` makes one), listen on "
                    "127.0.0.1, or allow every caller with --open"
                )

    def keys(self) -> Keys:
        """Raises KeysError if the keys cannot be used."""
        return Keys.load(self.api_keys_file)

    def tls(self) -> Tls | None:
        """None for plain text. Raises TlsError if the files cannot be used."""
        return Tls.from_files(self.tls_cert, self.tls_key, self.tls_client_ca)

    log_format: Literal["text", "json"] = Field(default="text", description="text or json, one object a line")

    @field_validator("http", "probes")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        return value if value is None else "{}:{}".format(*split_address(value))

    @field_validator("grpc")
    @classmethod
    def _grpc_address(cls, value: str | None) -> str | None:
        if value is None or value.startswith("unix:"):
            return value
        return "{}:{}".format(*split_address(value))


def shown_input(error: Mapping[str, Any]) -> str:
    """The refused value of one of pydantic's errors about settings, as an error quotes it; "" if it may hold a key."""
    location, value = error["loc"], error.get("input")
    if not location or str(location[0]).endswith("key") or isinstance(value, Mapping):
        return ""
    return shown(value)


class ExposureError(ValueError):
    """A service without keys would answer other machines. The message names the address and the remedies."""


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches HOST:PORT or unix:PATH."""
    if address.startswith("unix:"):
        return True
    host = split_address(address)[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def split_address(address: str) -> tuple[str, int]:
    """HOST and PORT of HOST:PORT. Raises ValueError that names the value and the form."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT; write for example 127.0.0.1:8000, or port 0 for a free one")
    return host, int(port)
