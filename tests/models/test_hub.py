"""Models of the Hub: from a mirror, compared with their checksums, then without a network.

The mirror is a server on this machine that answers as the Hub does.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from megabase.errors import ModelError
from megabase.models.auto import DEFAULT_MODEL, resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {file.name: file.read_bytes() for file in DEFAULT_MODEL.iterdir()}
CODE = "from megabase.models.auto import load_model; print(load_model('me/tiny').num_parameters())"


def checksum(name: str) -> str:
    """As the Hub names it: sha256 of weights, git's sha1 of small files."""
    content = FILES[name]
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Mirror(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith("/api/models/me/tiny/tree"):
            content = json.dumps(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": checksum(name)}
                    for name, data in FILES.items()
                ]
            ).encode()
        elif path.startswith("/api/models/me/tiny"):
            siblings = [{"rfilename": name} for name in FILES]
            content = json.dumps({"id": "me/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith(f"/me/tiny/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            content = FILES[name]
            headers["ETag"] = f'"{checksum(name)}"'
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def load(home: Path, **more: str) -> str:
    proxies = {name for name in os.environ if name.lower().endswith("_proxy")}
    kept = {name: value for name, value in os.environ.items() if name not in proxies}
    environment = {**kept, "HF_HOME": str(home), "MEGABASE_BACKEND": "fast", **more}
    call = [sys.executable, "-c", CODE]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_mirror_is_asked_once_and_the_files_are_compared(
    mirror: ThreadingHTTPServer, tmp_path: Path
) -> None:
    there = f"http://127.0.0.1:{mirror.server_port}"
    assert load(tmp_path, HF_ENDPOINT=there).splitlines()[0] == "1877120"
    mirror.shutdown()
    mirror.server_close()
    assert load(tmp_path, HF_HUB_OFFLINE="1").splitlines()[0] == "1877120"
    assert load(tmp_path, HF_ENDPOINT=there).splitlines()[0] == "1877120"  # nobody answers
    (weights,) = tmp_path.rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    said = load(tmp_path, HF_HUB_OFFLINE="1")
    assert f"that of the Hub {checksum('model.safetensors')}; delete " in said


def test_what_is_not_in_the_cache_is_said_without_a_network(tmp_path: Path) -> None:
    said = load(tmp_path, HF_HUB_OFFLINE="1")
    assert "me/tiny: is not a local folder, and cannot be fetched from the Hub" in said


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors"])
def test_a_damaged_file_of_the_cache_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damaged: str
) -> None:
    (tmp_path / "snapshot").mkdir()
    for name, content in FILES.items():
        (tmp_path / checksum(name)).write_bytes(content)
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / checksum(name))
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "snapshot")
    )
    assert resolve_model("me/tiny") == tmp_path / "snapshot"
    (tmp_path / checksum(damaged)).write_bytes(FILES[damaged][:-1])
    with pytest.raises(
        ModelError, match=rf"{damaged}: is damaged: .* delete .*{checksum(damaged)}"
    ):
        resolve_model("me/tiny")
