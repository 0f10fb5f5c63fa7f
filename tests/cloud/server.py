"""An S3-compatible server on loopback, for tests."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import make_server

BUCKET = "weights"
Fault = Callable[[str, str], int | None]


class Objects:
    """A server with one bucket; `environment` is what a process needs to find it."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._fault: Fault | None = None
        self._store = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "not-to-be-printed",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "*",
        }
        with self.known():
            self.client = boto3.client("s3")
        self.client.create_bucket(Bucket=BUCKET)

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        status = self._fault(environ["REQUEST_METHOD"], environ["PATH_INFO"]) if self._fault else None
        if status is None:
            return self._store(environ, start)  # type: ignore[no-any-return]
        start(f"{status} Fault", [("Content-Length", "0")])
        return []

    def publish(self, folder: Path, prefix: str) -> str:
        """Put a folder's files below a prefix, and give its URL."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")
        return f"s3://{BUCKET}/{prefix}"

    def contents(self, prefix: str) -> dict[str, bytes]:
        """Every object below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        return {
            key.removeprefix(f"{prefix}/"): self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
        }

    @contextmanager
    def known(self) -> Iterator[None]:
        """Let this process take it for the only one."""
        with mock.patch.dict(os.environ, self.environment):
            S3FileSystem.clear_instance_cache()
            yield
        S3FileSystem.clear_instance_cache()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Let every request wait."""
        go_on = threading.Event()

        def wait(method: str, path: str) -> None:
            go_on.wait(20)

        with self.disturbed(wait):
            try:
                yield
            finally:
                go_on.set()

    @contextmanager
    def disturbed(self, fault: Fault) -> Iterator[None]:
        """Ask `fault` before every request: a status that it gives is the answer."""
        self._fault = fault
        try:
            yield
        finally:
            self._fault = None

    def close(self) -> None:
        self._server.shutdown()
