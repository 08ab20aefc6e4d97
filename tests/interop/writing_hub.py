"""A Hub on the loopback to which releases are pushed: one repository in memory, and its storage on the same port.

It keeps what was sent whole and nothing else, refuses bytes that have another hash than was announced, and commits that
name what was never sent.
"""
import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PART = 60_000


class Repository:
    def __init__(self):
        self.lock = threading.Lock()
        self.exists, self.files, self.storage, self.parts, self.faults, self.commits = False, {}, {}, {}, [], 0

    def content(self):
        """Hash of every file that the repository has."""
        return {path: hashlib.sha256(data).hexdigest() for path, data in self.files.items()}


def serve():
    """Starts one. The repository, and its address."""
    repository = Repository()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def reply(self, value=None, status=200, **headers):
            body = json.dumps({} if value is None else value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self):
            length = int(self.headers.get("Content-Length", 0))
            data = self.rfile.read(length)
            # Who was killed in the middle has sent nothing.
            return data if len(data) == length else None

        def do_GET(self):
            with repository.lock:
                if not repository.exists:
                    self.reply(status=404, X_Error_Code="RepoNotFound")
                elif "/tree/" in self.path:
                    self.reply([self.row(path, data) for path, data in sorted(repository.files.items())])
                else:
                    self.reply()

        def row(self, path, data):
            row = {"type": "file", "path": path, "size": len(data)}
            if path.endswith((".gguf", ".safetensors")):
                return row | {"oid": "0", "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}}
            return row | {"oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}

        def do_PUT(self):
            data = self.body()
            if data is None:
                return
            oid, _, part = self.path.split("/storage/")[1].partition("/")
            with repository.lock:
                if part:
                    repository.parts[oid, int(part)] = data
                else:
                    self.keep(oid, data)
            self.reply(ETag=f'"{part}"')

        def keep(self, oid, data):
            if hashlib.sha256(data).hexdigest() != oid:
                repository.faults.append(f"other bytes than announced for {oid}")
            repository.storage[oid] = data

        def do_POST(self):
            data = self.body()
            if data is None:
                return
            with repository.lock:
                if "/commit/" in self.path:
                    return self.commit(data)
                given = json.loads(data or b"{}")
                if "/storage/" in self.path:
                    oid = self.path.split("/storage/")[1]
                    self.keep(oid, b"".join(repository.parts[oid, p["partNumber"]] for p in given["parts"]))
                    return self.reply()
                if self.path == "/api/repos/create":
                    repository.exists = True
                    return self.reply()
                if "/preupload/" in self.path:
                    large = lambda f: f["path"].endswith((".gguf", ".safetensors"))
                    mode = lambda f: {"path": f["path"], "uploadMode": "lfs" if large(f) else "regular", "shouldIgnore": False}
                    return self.reply({"files": [mode(f) for f in given["files"]]})
                if self.path.endswith("/objects/batch"):
                    return self.reply({"transfer": "basic", "objects": [self.wanted(o) for o in given["objects"]]})
                if self.path == "/verify":
                    whole = len(repository.storage.get(given["oid"], b"")) == given["size"]
                    return self.reply(status=200 if whole else 422)
            self.reply(status=404)

        def wanted(self, o):
            row, here = {"oid": o["oid"], "size": o["size"]}, f"http://{self.headers['Host']}"
            if o["oid"] not in repository.storage:
                place = f"{here}/storage/{o['oid']}"
                upload = {"href": place}
                if o["size"] > PART:
                    count = -(-o["size"] // PART)
                    upload["header"] = {str(p): f"{place}/{p}" for p in range(1, count + 1)} | {"chunk_size": str(PART)}
                row["actions"] = {"upload": upload, "verify": {"href": f"{here}/verify"}}
            return row

        def commit(self, data):
            new = {}
            for line in map(json.loads, data.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    new[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile" and value["oid"] in repository.storage:
                    new[value["path"]] = repository.storage[value["oid"]]
                elif line["key"] != "header":
                    repository.faults.append(f"a commit with {line}")
            repository.files.update(new)
            repository.commits += 1
            self.reply({"success": True, "commitOid": "0" * 40, "commitUrl": "http://hub/commit"})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # Connections end where processes are killed.
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return repository, f"http://127.0.0.1:{server.server_port}"
