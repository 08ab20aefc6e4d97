"""A GGUF file as values that can be changed one at a time and written again, and llama.cpp's word on whether a file loads.

Only what the scripts beside it need: one file, no shards, version 3, little-endian.
"""
import os
import struct
import sys

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Gguf:
    """`keys`: name -> (type, raw bytes of the value). `tensors`: [name, dims (fastest first), type, bytes]."""

    def __init__(self, path):
        data = open(path, "rb").read()
        magic, version, tensors, keys = struct.unpack_from("<4sIQQ", data)
        assert magic == b"GGUF" and version == 3, path
        at = 24

        def string(at):
            (n,) = struct.unpack_from("<Q", data, at)
            return data[at + 8 : at + 8 + n].decode(), at + 8 + n

        def after(kind, at):
            if kind == STRING:
                return string(at)[1]
            if kind == ARRAY:
                inner, n = struct.unpack_from("<IQ", data, at)
                at += 12
                if inner in SIZES:
                    return at + n * SIZES[inner]
                for _ in range(n):
                    at = after(inner, at)
                return at
            return at + SIZES[kind]

        self.keys = {}
        for _ in range(keys):
            name, at = string(at)
            (kind,) = struct.unpack_from("<I", data, at)
            end = after(kind, at + 4)
            self.keys[name] = (kind, data[at + 4 : end])
            at = end
        rows = []
        for _ in range(tensors):
            name, at = string(at)
            (n,) = struct.unpack_from("<I", data, at)
            dims = list(struct.unpack_from(f"<{n}Q", data, at + 4))
            kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * n)
            at += 16 + 8 * n
            rows.append((name, dims, kind, offset))
        align = self.get("general.alignment") or 32
        start = -(-at // align) * align
        ends = sorted(r[3] for r in rows)[1:] + [len(data) - start]
        order = sorted(range(len(rows)), key=lambda i: rows[i][3])
        self.tensors = [None] * len(rows)
        for end, i in zip(ends, order):
            name, dims, kind, offset = rows[i]
            self.tensors[i] = [name, dims, kind, data[start + offset : start + end]]
        self.align = align

    def get(self, name):
        """The value of a key that is a number, a string or an array of them."""
        if name not in self.keys:
            return None
        kind, raw = self.keys[name]
        if kind == STRING:
            return raw[8:].decode(errors="replace")
        if kind == ARRAY:
            inner, n = struct.unpack_from("<IQ", raw)
            if inner == STRING:
                out, at = [], 12
                for _ in range(n):
                    (length,) = struct.unpack_from("<Q", raw, at)
                    out.append(raw[at + 8 : at + 8 + length].decode(errors="replace"))
                    at += 8 + length
                return out
            return list(struct.unpack_from(f"<{n}{FORMATS[inner]}", raw, 12))
        return struct.unpack("<" + FORMATS[kind], raw)[0]

    def set(self, name, kind, value):
        """A number, a string, or a list of strings."""
        if kind == STRING:
            raw = struct.pack("<Q", len(value.encode())) + value.encode()
        elif kind == ARRAY:
            texts = [v.encode() for v in value]
            raw = struct.pack("<IQ", STRING, len(texts)) + b"".join(struct.pack("<Q", len(t)) + t for t in texts)
        else:
            raw = struct.pack("<" + FORMATS[kind], value)
        self.keys[name] = (kind, raw)

    def is_encoder(self):
        """Whether the model gives embeddings and no next token."""
        arch = self.get("general.architecture")
        return self.get(f"{arch}.attention.causal") is False or f"{arch}.pooling_type" in self.keys

    def find(self, name):
        return next((t for t in self.tensors if t[0] == name), None)

    def write(self, path):
        def string(text):
            return struct.pack("<Q", len(text.encode())) + text.encode()

        out = [struct.pack("<4sIQQ", b"GGUF", 3, len(self.tensors), len(self.keys))]
        out += [string(name) + struct.pack("<I", kind) + raw for name, (kind, raw) in self.keys.items()]
        offset = 0
        for name, dims, kind, data in self.tensors:
            out.append(string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
            offset += -(-len(data) // self.align) * self.align
        head = b"".join(out)
        with open(path, "wb") as file:
            file.write(head + bytes(-len(head) % self.align))
            for t in self.tensors:
                file.write(t[3] + bytes(-len(t[3]) % self.align))


def loads(path, seconds=60):
    """Whether unmodified llama.cpp (PyPI xllamacpp) loads the file and survives its first evaluation. One process each, for
    what it does not like may end it."""
    import xllamacpp

    os.environ["GGML_NO_BACKTRACE"] = "1"
    embeds = Gguf(path).is_encoder()
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        import signal

        signal.alarm(seconds)
        try:
            p = xllamacpp.CommonParams()
            p.model.path, p.n_ctx, p.fit_params = str(path), 64, False
            p.embedding = embeds
            p.cpuparams.n_threads = 1
            server = xllamacpp.Server(p)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(path, "loads" if loads(path) else "refused")
