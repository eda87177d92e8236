"""A MinIO with a bucket, for a person to try: `make minio`. It runs until Ctrl-C and keeps its data."""

from __future__ import annotations

import sys

from tests.servers import s3
from tests.servers.build import ROOT

BUCKET = "checkpoints"


def main() -> int:
    place = ROOT / ".cache" / "minio"
    server = s3.minio(place)
    if server is None:
        print("MinIO is not built: run `make servers` (needs Go).", file=sys.stderr)
        return 1
    with server.process:
        names = [bucket["Name"] for bucket in server.raw.list_buckets()["Buckets"]]
        if BUCKET not in names:
            server.raw.create_bucket(Bucket=BUCKET)
        # In a file: nobody has to copy a secret, and none ends up in a shell's history.
        credentials = place / "credentials"
        credentials.write_text(
            f"[default]\naws_access_key_id = {server.key}\naws_secret_access_key = {server.secret}\n"
        )
        credentials.chmod(0o600)
        print(f"MinIO runs until Ctrl-C. In another terminal:\n\n  export AWS_ENDPOINT_URL={server.url}")
        print(f"  export AWS_SHARED_CREDENTIALS_FILE={credentials}\n")
        print(f"Then save to s3://{BUCKET}/run/model, and look: ckptstore ls s3://{BUCKET}/run", flush=True)
        try:
            server.process.wait()
        except KeyboardInterrupt:
            return 0
    print("MinIO has stopped.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
