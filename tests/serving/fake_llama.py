"""A program that is called as llama-server is and answers as one does, and a GGUF file to serve."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

_PROGRAM = """#!{python}
import http.server, json, os, sys, time
words = sys.argv[1:]
def after(flag): return words[words.index(flag) + 1]
mood = after("--mood") if "--mood" in words else "good"
print("loading", after("-m"), flush=True)
if mood == "slow":
    time.sleep(600)
if mood == "broken":
    sys.exit("llama_model_load: error: tensor 'blk.0.attn_q.weight' data is not within the file")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = {{"data": [{{"id": after("--alias"), "owned_by": "tests"}}]}}
        self.answer({{"status": "ok"}} if self.path == "/health" else found)
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wanted = os.environ.get("LLAMA_API_KEY")
        if wanted and self.headers.get("Authorization") != "Bearer " + wanted:
            self.answer({{"error": {{"message": "Invalid API Key"}}}}, 401)
            return
        if mood == "dies":
            os._exit(11)
        prompt = asked.get("prompt") or asked["messages"][-1]["content"]
        text = asked["model"] + " says " + prompt
        choice = {{"text": text, "message": {{"content": text}}, "finish_reason": "stop"}}
        if self.path.endswith("chat/completions"):
            del choice["text"]
        self.answer({{"choices": [choice]}})
        if mood == "dies later":
            import threading
            threading.Timer(1.0, lambda: os._exit(11)).start()
    def answer(self, found, status=200):
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer((after("--host"), int(after("--port"))), Handler).serve_forever()
"""


def llama_server(place: Path) -> Path:
    """The program, for ``--engine-python llama.cpp=``; ``-- --mood WORD`` has it misbehave."""
    program = place / "llama-server"
    program.write_text(_PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    return program


def write_gguf(path: Path, *, template: bool = False) -> Path:
    """A header of a small Llama, with one tensor."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_vocab_size(256)
    if template:
        writer.add_chat_template("{{ messages[0].content }}")
    writer.add_tensor("token_embd.weight", np.zeros((256, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
