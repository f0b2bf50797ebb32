"""A server of the hub's protocol on loopback: what huggingface_hub asks for when it fetches a file.

HEAD and GET of /OWNER/REPO/resolve/REVISION/FILE redirect to /content, which serves ranges. Files
are stored as large ones are: the ETag is the SHA-256 of what the hub says it holds. A repository
can be listed, made, and committed to with files inside the commit.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Holds public files by OWNER/REPO/FILE; `requests` are the lines it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.gated: set[str] = set()  # OWNER/REPO that need the token "good"
        self.damaged: set[str] = set()  # files whose content is not what their hash says
        self.breaks_after: int | None = None  # bytes after which the first body breaks off
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                server.answer(self, head=True)

            def do_GET(self) -> None:
                server.answer(self, head=False)

            def do_POST(self) -> None:
                server.post(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.store = f"http://localhost:{self.http.server_port}"  # another host, as the hub's is
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request: BaseHTTPRequestHandler, *, head: bool) -> None:
        ranged = request.headers.get("Range", "")
        self.requests.append(f"{request.command} {request.path} {ranged}".strip())
        if request.path.startswith("/api/models/"):
            self._listed(request, request.path.removeprefix("/api/models/"))
            return
        if request.path.startswith("/content/"):
            self._content(request, request.path.removeprefix("/content/"), ranged)
            return
        repo, _, rest = request.path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        name, token = f"{repo}/{file}", request.headers.get("Authorization")
        if repo in self.gated and token != "Bearer good":
            self._refuse(request, 401, "GatedRepo")
        elif not any(held.startswith(f"{repo}/") for held in self.files):
            self._refuse(request, 401, "RepoNotFound")  # as the hub answers strangers
        elif revision not in ("main", COMMIT):
            self._refuse(request, 404, "RevisionNotFound")
        elif name not in self.files:
            self._refuse(request, 404, "EntryNotFound")
        else:
            body = self.files[name]
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            request.send_response(302)
            request.send_header("Location", f"{self.store}/content/{name}")
            request.send_header("X-Repo-Commit", COMMIT)
            request.send_header("X-Linked-Etag", etag)
            request.send_header("X-Linked-Size", str(len(body)))
            request.send_header("Content-Length", "0")
            request.end_headers()

    def post(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(f"POST {request.path}")
        lines = request.rfile.read(int(request.headers["Content-Length"])).splitlines()
        repo = "/".join(request.path.removeprefix("/api/models/").split("/")[:2])
        if request.path == "/api/repos/create":
            asked = json.loads(lines[0])
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.gated and request.headers.get("Authorization") != "Bearer good":
            self._refuse(request, 401, "")
        elif "/preupload/" in request.path:
            files = [file["path"] for file in json.loads(lines[0])["files"]]
            answer = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self._json(request, {"files": answer})
        elif "/commit/" in request.path:
            for entry in map(json.loads, lines):
                if entry["key"] == "file":
                    value = entry["value"]
                    self.files[f"{repo}/{value['path']}"] = base64.b64decode(value["content"])
            url = f"{self.url}/{repo}/commit/{COMMIT}"
            self._json(request, {"success": True, "commitUrl": url, "commitOid": COMMIT})
        else:
            self._json(request, {"url": f"{self.url}/{repo}", "id": repo, "name": repo})

    def _listed(self, request: BaseHTTPRequestHandler, path: str) -> None:
        repo = "/".join(path.partition("?")[0].split("/")[:2])
        held = {n.removeprefix(f"{repo}/"): b for n, b in self.files.items() if n.startswith(repo)}
        if not held:
            self._refuse(request, 401, "RepoNotFound")
        elif "/tree/" in path:
            shas = {name: hashlib.sha256(body).hexdigest() for name, body in held.items()}
            self._json(request, [
                {"type": "file", "path": name, "size": len(body), "oid": shas[name][:40],
                 "lfs": {"oid": shas[name], "size": len(body), "pointerSize": 130}}
                for name, body in held.items()
            ])  # fmt: skip
        else:
            siblings = [{"rfilename": name} for name in held]
            self._json(request, {"id": repo, "sha": COMMIT, "siblings": siblings})

    def _json(self, request: BaseHTTPRequestHandler, value: object) -> None:
        body = json.dumps(value).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _content(self, request: BaseHTTPRequestHandler, name: str, ranged: str) -> None:
        body = self.files[name]
        if name in self.damaged:
            body = body[:-1] + bytes([body[-1] ^ 1])
        start = int(ranged.removeprefix("bytes=").partition("-")[0]) if ranged else 0
        request.send_response(206 if ranged else 200)
        if ranged:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.breaks_after is not None and not ranged:
            request.wfile.write(body[start : start + self.breaks_after])
            request.close_connection = True
            return
        request.wfile.write(body[start:])

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()
