"""The few routes of the Hugging Face Hub that a small push and a load take, on this machine."""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_right"


class FakeHub(http.server.ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        files: {repository: {name: content}}.
        requests: lines "GET /path", in order.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str) -> str:
        """A name for what the repository now holds."""
        return hashlib.sha1(repr(sorted(self.files[repository].items())).encode()).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = urllib.parse.urlparse(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", TOKEN):
            return self.answer({"error": "Invalid token"}, 401)
        for pattern, respond in _ROUTES.items():
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                repository = match.groupdict().get("repository")
                if repository and repository not in self.server.files:
                    return self.answer({}, 404, X_Error_Code="RepoNotFound")
                return respond(self, body, **match.groupdict())
        return self.answer({"error": f"no such route: {path}"}, 500)

    do_GET = do_HEAD = do_POST = handle_any

    def create(self, body):
        options = json.loads(body)
        repository = f"{options.get('organization') or 'me'}/{options['name']}"
        if repository.startswith("other/"):
            return self.answer({}, 403, X_Error_Message="not your namespace")
        self.server.files.setdefault(repository, {})
        return self.answer({"url": f"{self.server.address}/{repository}"})

    def preupload(self, body, repository):
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
        self.answer({"files": modes})

    def commit(self, body, repository):
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.files[repository][line["value"]["path"]] = content
        sha = self.server.commit(repository)
        self.answer(
            {"commitOid": sha, "commitUrl": f"{self.server.address}/{repository}/commit/{sha}"}
        )

    def information(self, body, repository, revision="main"):
        if revision != "main":
            return self.answer({}, 404, X_Error_Code="RevisionNotFound")
        return self.answer(
            {"id": repository, "sha": self.server.commit(repository), "siblings": []}
        )

    def tree(self, body, repository):
        files = self.server.files[repository].items()
        self.answer([{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in files])

    def file(self, body, repository, name):
        content = self.server.files[repository][name]
        digest = hashlib.sha1(content).hexdigest()
        self.answer(content, ETag=f'"{digest}"', X_Repo_Commit=self.server.commit(repository))


_API = "/api/models/(?P<repository>[^/]+/[^/]+)"
_ROUTES = {
    "GET /api/whoami-v2": lambda handler, body: handler.answer({"name": "me", "type": "user"}),
    "POST /api/repos/create": _Handler.create,
    "POST /api/validate-yaml": lambda handler, body: handler.answer({"errors": [], "warnings": []}),
    f"POST {_API}/preupload/main": _Handler.preupload,
    f"POST {_API}/commit/main": _Handler.commit,
    f"GET {_API}": _Handler.information,
    f"GET {_API}/revision/(?P<revision>.+)": _Handler.information,
    f"GET {_API}/tree/.+": _Handler.tree,
    "(GET|HEAD) /(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<name>.+)": _Handler.file,
}
