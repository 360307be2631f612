"""TLS certificates of a client."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from vold_client.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files for grpcs:// and https:// URLs.

    ca: the CA that signed the service's certificate; None for the public CAs. cert, key: this client's certificate and
    its key, for a service that requires a client certificate.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None

    def grpc_credentials(self) -> grpc.ChannelCredentials:
        """Raises InvalidArgument if the files cannot be used."""
        self.ssl_context()  # gRPC itself does not report files that do not go together
        ca, cert, key = (
            Path(file).read_bytes() if file is not None else None for file in (self.ca, self.cert, self.key)
        )
        return grpc.ssl_channel_credentials(ca, key, cert)

    def ssl_context(self) -> ssl.SSLContext:
        """Raises InvalidArgument if the files cannot be used."""
        if (self.cert is None) != (self.key is None):
            present, missing = ("tls.cert", "tls.key") if self.key is None else ("tls.key", "tls.cert")
            raise InvalidArgument(f"{present} is set and {missing} is not: they go together", field=missing)
        for field, file in (("tls.ca", self.ca), ("tls.cert", self.cert), ("tls.key", self.key)):
            if file is not None and not Path(file).is_file():
                raise InvalidArgument(f"{field} is {str(file)!r}, which is no file: give a PEM file", field=field)
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError as error:
            raise InvalidArgument(f"tls.ca {str(self.ca)!r} holds no certificate in PEM", field="tls.ca") from error
        if self.cert is not None:
            try:
                context.load_cert_chain(
                    self.cert, self.key, password=""
                )  # otherwise OpenSSL asks for one on the terminal
            except (ssl.SSLError, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                raise InvalidArgument(
                    f"tls.cert {str(self.cert)!r} and tls.key {str(self.key)!r} do not go together ({reason}): give a "
                    "certificate in PEM and the key it was made with, not encrypted",
                    field="tls.cert",
                ) from error
        return context
