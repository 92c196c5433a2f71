"""A model hub on this machine: what huggingface_hub asks of one to download and to upload.

/api/models/<repo>[/revision/<name>]     which commit a branch is
/api/models/<repo>/tree/<commit>         the files
/<repo>/resolve/<commit>/<file>          one file
/api/repos/create, preupload, commit     a new repository, and files into it
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    """repo/name/file"""

    @property
    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            return self._about(path.removeprefix("/api/models/"))
        return self._file(path, with_body=True)

    def do_HEAD(self) -> None:
        self._file(self.path.partition("?")[0], with_body=False)

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/api/repos/create"):
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            (self.root / name).mkdir(parents=True, exist_ok=True)
            return self._json({"url": f"{self._address}/{name}", "name": name})
        if "/preupload/" in self.path:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if "/commit/" in self.path:
            repo = self.path.partition("/api/models/")[2].partition("/commit/")[0]
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    path = self.root / repo / item["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(item["value"]["content"]))
            return self._json(
                {"commitUrl": f"{self._address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
            )
        return self._json({})  # the front matter of a README is fine

    def _about(self, rest: str) -> None:
        repo = "/".join(rest.split("/")[:2])
        if not (self.root / repo).is_dir():
            return self._json({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})
        if "/tree/" in rest:
            files = [path for path in sorted((self.root / repo).rglob("*")) if path.is_file()]
            return self._json(
                [
                    {
                        "type": "file",
                        "path": path.relative_to(self.root / repo).as_posix(),
                        "size": path.stat().st_size,
                        "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                    }
                    for path in files
                ]
            )
        return self._json({"id": repo, "sha": COMMIT, "siblings": [], "private": False})

    def _file(self, path: str, *, with_body: bool) -> None:
        repo, _, rest = path.strip("/").partition("/resolve/")
        file = self.root / repo / rest.partition("/")[2]
        if not file.is_file():
            return self._json({"error": "no"}, 404, {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(content)
        return None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def local_hub(root: Path) -> Iterator[str]:
    """A hub that serves the folder, and takes uploads into it; its address."""
    handler = type("Hub", (_Hub,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
