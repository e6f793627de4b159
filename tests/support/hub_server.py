"""A local server that answers the requests of `datasets` and `huggingface_hub` to the Hub from a folder.

The folder holds `OWNER/NAME/…`. Access to a data set named `gated` is denied. The folder `OWNER/NAME/parquet_copy` is
served as the revision `refs/convert/parquet`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
PARQUET_COPY, PARQUET_COPY_SHA = "refs/convert/parquet", "f" * 40
PARQUET_COPY_FOLDER = "parquet_copy"


class HubServer:
    """Serves a folder. `requests` lists (method, path, bytes sent)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests = folder, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                server.answer(self)

            do_HEAD = do_POST = do_GET

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def sent(self, ending: str) -> int:
        """Number of bytes sent of files whose names have this ending."""
        return sum(size for method, path, size in self.requests if method == "GET" and path.endswith(ending))

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(request.path).path).replace(PARQUET_COPY, PARQUET_COPY_SHA)
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        if parts[int(api)] != "datasets" or len(parts) < 3 + api:
            return self.refuse(request, path, "EntryNotFound")
        owner, name, *rest = parts[1 + api :]
        repository = self.folder / owner / name
        if name == "gated" and not api:
            return self.refuse(request, path, "GatedRepo", 401)
        if not repository.is_dir():
            return self.refuse(request, path, "RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", SHA, PARQUET_COPY_SHA):
            return self.refuse(request, path, "RevisionNotFound")
        commit = PARQUET_COPY_SHA if revision == PARQUET_COPY_SHA else SHA
        if commit == PARQUET_COPY_SHA:
            repository = repository / PARQUET_COPY_FOLDER
        if not api:
            return self.send_file(request, path, repository, "/".join(rest[2:]), commit)
        if not rest or rest[0] == "revision":
            return self.send_json(request, path, {"id": f"{owner}/{name}", "sha": commit, "siblings": [], "tags": []})
        if rest[0] == "tree":
            return self.send_tree(request, path, repository, "/".join(rest[2:]))
        if rest[0] == "paths-info":
            wanted = json.loads(body)["paths"] if body[:1] == b"{" else []
            found = [repository / name for name in wanted if (repository / name).exists()]
            return self.send_json(request, path, [self.entry(repository, item) for item in found])
        return self.refuse(request, path, "EntryNotFound")

    def entry(self, repository, item):
        name = str(item.relative_to(repository))
        oid = hashlib.sha1(name.encode()).hexdigest()
        kind = "directory" if item.is_dir() else "file"
        return {"type": kind, "path": name, "oid": oid, "size": 0 if item.is_dir() else item.stat().st_size}

    def send_tree(self, request, path, repository, folder):
        place = repository / folder
        if not place.is_dir():
            return self.refuse(request, path, "EntryNotFound")
        deep = "recursive=true" in request.path.lower()
        items = sorted(place.rglob("*") if deep else place.iterdir())
        return self.send_json(request, path, [self.entry(repository, item) for item in items])

    def send_file(self, request, path, repository, name, commit):
        file = repository / name
        if not file.is_file():
            return self.refuse(request, path, "EntryNotFound", **{"X-Repo-Commit": commit})
        data = file.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if span := request.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return self.send(request, path, 206, part, headers)
        return self.send(request, path, 200, data, headers)

    def refuse(self, request, path, code, status=404, **headers):
        self.send(request, path, status, b"", {"X-Error-Code": code, **headers})

    def send_json(self, request, path, content):
        return self.send(request, path, 200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(self, request, path, status, data, headers=None):
        request.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        head = request.command == "HEAD"
        self.requests.append((request.command, path, 0 if head else len(data)))
        if not head:
            request.wfile.write(data)
