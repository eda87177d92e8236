"""MinIO over HTTPS, with a certificate of its own that nobody else vouches for."""

from __future__ import annotations

import ssl
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import s3
from tests.servers.certificates import make_certificates
from tests.servers.process import ServerProcess

__all__ = ["TlsS3Server", "minio_tls"]


@dataclass
class TlsS3Server(s3.S3Server):
    """See `S3Server`.

    Attributes
    ----------
    authority : str
        File of the authority that vouches for it.
    """

    authority: str = ""

    @property
    def options(self) -> dict[str, Any]:
        options = super().options
        return options | {"client_kwargs": options["client_kwargs"] | {"verify": self.authority}}

    @property
    def raw(self) -> Any:
        if not self._clients:
            import boto3

            self._clients[0] = boto3.client(
                "s3",
                endpoint_url=self.process.url,
                aws_access_key_id=self.key,
                aws_secret_access_key=self.secret,
                region_name="us-east-1",
                verify=self.authority,
            )
        return self._clients[0]


class _TlsProcess(ServerProcess):
    def __init__(self, plain: ServerProcess, certificates: Path, authority: Path) -> None:
        self.__dict__.update(plain.__dict__)
        self.command = [*plain.command[:2], "--certs-dir", str(certificates), *plain.command[2:]]
        self.url = plain.url.replace("http:", "https:")
        self._context = ssl.create_default_context(cafile=authority)

    def _is_ready(self) -> bool:
        try:
            url = self.url + self._health
            with urllib.request.urlopen(url, timeout=2, context=self._context) as answer:
                return int(answer.status) == 200
        except OSError:
            return False


def minio_tls(directory: Path) -> TlsS3Server | None:
    """Return MinIO over HTTPS, not started; None if it was not built."""
    plain = s3.minio(directory)
    if plain is None:
        return None
    authority, _ = make_certificates(directory / "made")
    key, end, certificate = (
        (directory / "made" / "server.pem").read_text().partition("-----END PRIVATE KEY-----\n")
    )
    place = directory / "certificates"
    place.mkdir()
    (place / "private.key").write_text(key + end)
    (place / "public.crt").write_text(certificate)
    process = _TlsProcess(plain.process, place, authority)
    return TlsS3Server(process, process.url, authority=str(authority))
