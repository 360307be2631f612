"""TLS and mutual TLS for both faces, from PEM files that may be renewed while the service runs."""

import asyncio
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

log = logging.getLogger("vold.tls")

WATCH_SECONDS = 5.0


class TlsError(ValueError):
    """Unusable TLS files. The message names the option, the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Tls:
    """cert: the certificate, followed by the intermediate certificates. key: its private key, not encrypted.
    client_ca: if set, a caller must show a certificate that this CA has signed.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def from_files(cls, cert: Path | None, key: Path | None, client_ca: Path | None) -> "Tls | None":
        """From the options; None if TLS is off. Raises TlsError if the files do not go together."""
        if cert is None or key is None:
            for option, value, other in (("--tls-cert", cert, "--tls-key"), ("--tls-key", key, "--tls-cert")):
                if value is not None:
                    raise TlsError(f"{option} {value}: {other} is missing; a certificate and its key go together")
            if client_ca is not None:
                raise TlsError(f"--tls-client-ca {client_ca}: needs --tls-cert and --tls-key too")
            return None
        tls = cls(cert, key, client_ca)
        tls.ssl_context()
        return tls

    def ssl_context(self) -> ssl.SSLContext:
        """For the HTTP face. Raises TlsError if a file cannot be used."""
        for option, file in (("--tls-cert", self.cert), ("--tls-key", self.key), ("--tls-client-ca", self.client_ca)):
            if file is not None:
                _check_readable(option, file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.load(context)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise TlsError(f"--tls-client-ca {self.client_ca}: holds no certificate in PEM ({error})") from error
        return context

    def load(self, context: ssl.SSLContext) -> None:
        """Load the certificate and its key into a context. New connections then show them."""
        try:
            # The empty password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(self.cert, self.key, password="")
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
            raise TlsError(
                f"--tls-cert {self.cert} and --tls-key {self.key} do not go together ({reason}): give a certificate in "
                "PEM and the key it was made with, not encrypted"
            ) from error

    def signature(self) -> tuple[int, ...]:
        """Values that differ if one of the files has changed; 0 for a missing file."""
        files = [file for file in (self.cert, self.key, self.client_ca) if file is not None]
        return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For the gRPC face, which asks for the certificate at each handshake. While the files do not go together, as
        in the middle of a renewal, the face keeps its last certificate.
        """
        loaded = self.signature()

        def read() -> Any:
            pair = (self.key.read_bytes(), self.cert.read_bytes())
            client_ca = self.client_ca.read_bytes() if self.client_ca is not None else None
            return grpc.ssl_server_certificate_configuration([pair], client_ca)

        def read_if_changed() -> Any:
            nonlocal loaded
            signature = self.signature()
            if signature == loaded:
                return None
            loaded = signature
            try:
                self.ssl_context()
                return read()
            except (TlsError, OSError) as error:
                log.error("the gRPC face keeps its certificate: %s", error)
                return None

        return grpc.dynamic_ssl_server_credentials(
            read(), read_if_changed, require_client_authentication=self.client_ca is not None
        )


async def watch_certificate(tls: Tls, context: ssl.SSLContext) -> None:
    """Load the files into the HTTP face's context whenever they change, until cancelled."""
    loaded = tls.signature()
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        signature = tls.signature()
        if signature == loaded:
            continue
        loaded = signature
        try:
            tls.ssl_context()
            tls.load(context)
        except TlsError as error:
            log.error("the HTTP face keeps its certificate: %s", error)
        else:
            log.info("read the certificate %s again", tls.cert)


def _check_readable(option: str, file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise TlsError(f"{option} {file}: cannot be read ({error.strerror}): give the path of a PEM file") from error
