"""The worker and the hub's own Python package use one cache: what either fetches, the other finds, offline.

    python tests/python/check_hub.py WORKER MODEL

WORKER: the worker's binary; MODEL: a model folder, which a local server offers as org/tiny to those with the token.
Both are told of it by the hub's environment variables alone.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
TOKEN = "hf_for_this_test"


class Hub(BaseHTTPRequestHandler):
    """Large files redirect to another host name, as the hub does, where no token may arrive."""

    files: dict[str, bytes] = {}
    leaked = False
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, str(value))
        if "Content-Length" not in dict(headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        token = self.headers.get("Authorization")
        path = self.path.split("?")[0]
        if path.startswith("/large/"):
            Hub.leaked |= token is not None
            body = self.files[path.removeprefix("/large/")]
            return self.answer(200, {"Content-Length": len(body)}, body)
        if token != f"Bearer {TOKEN}":
            return self.answer(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "no"})
        if path.startswith("/api/models/org/tiny/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            body = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "tags": [], "private": True})
            return self.answer(200, {"Content-Type": "application/json"}, body.encode())
        name = path.removeprefix("/org/tiny/resolve/").removeprefix("main/").removeprefix(f"{COMMIT}/")
        if name not in self.files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        body = self.files[name]
        if name.endswith(".safetensors"):
            place = f"http://localhost:{self.server.server_port}/large/{name}"
            headers = {"Location": place, "X-Linked-Size": len(body), "X-Repo-Commit": COMMIT}
            return self.answer(302, headers | {"X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"'})
        etag = hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()
        self.answer(200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": len(body)}, body)

    do_HEAD = do_GET


def run(command, environment):
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command}: {done.stderr[-2000:]}")
    return done.stdout.strip()


FETCH = "import huggingface_hub, sys; \
print(*[huggingface_hub.hf_hub_download('org/tiny', name) for name in sys.argv[1:]], sep='\\n')"
LOAD = "import transformers; transformers.AutoModelForCausalLM.from_pretrained('org/tiny'); \
transformers.AutoTokenizer.from_pretrained('org/tiny'); print('loaded')"


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    worker, model = sys.argv[1], Path(sys.argv[2])
    Hub.files = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    online = kept | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": TOKEN, "PYTHONWARNINGS": "ignore"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
        folder = run([worker, "fetch", "org/tiny"], online | {"HF_HOME": ours})
        assert folder == f"{ours}/hub/models--org--tiny/snapshots/{COMMIT}", folder
        for name, body in Hub.files.items():
            path = Path(folder) / name
            assert not path.exists() or path.read_bytes() == body, name
        assert run([sys.executable, "-c", LOAD], online | offline | {"HF_HOME": ours}) == "loaded"

        fetched = run([sys.executable, "-c", FETCH, *Hub.files], online | {"HF_HOME": theirs})
        found = run([worker, "fetch", "org/tiny"], online | offline | {"HF_HOME": theirs})
        assert os.path.samefile(os.path.dirname(fetched.splitlines()[-1]), found), (fetched, found)
        names = [{p.name for p in Path(home).glob("hub/models--org--tiny/blobs/*")} for home in (ours, theirs)]
        assert names[0] and names[0] <= names[1], "blobs have other names"
    assert not Hub.leaked, "the token went to another host"
    print("each finds in the cache what the other fetched; the token stayed with the hub")


if __name__ == "__main__":
    main()
