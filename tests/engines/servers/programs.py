"""Small programs that stand for engines: they listen, or fail as engines do."""

from __future__ import annotations

import sys
from pathlib import Path

from remerge.engines.servers.server import Address, Command

# Answers at /health after a while, with children in its own session and in another.
_PROGRAM = """
import http.server, os, signal, subprocess, sys, time
host, port, mood = sys.argv[1], int(sys.argv[2]), sys.argv[3]
print("loading the model", flush=True)
if mood == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif mood != "plain":
    signal.signal(signal.SIGTERM, lambda *_: (print("told to end", flush=True), os._exit(0)))
if mood == "slow":
    time.sleep(600)
if mood == "broken":
    sys.exit("ValueError: no such tensor: model.embed_tokens.weight")
if mood == "large":
    sys.exit("RuntimeError: failed to allocate buffer of size 8589934592")
children = [
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=own)
    for own in (False, True)
]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer((host, port), Handler)
print(f"listening with {[child.pid for child in children]}", flush=True)
if mood == "dies":
    import threading
    threading.Timer(0.5, lambda: os._exit(9)).start()
server.serve_forever()
"""


def command(place: Path, address: Address, mood: str = "good") -> Command:
    file = place / "engine.py"
    file.write_text(_PROGRAM)
    words = (sys.executable, "-P", str(file), address.host, str(address.port), mood)
    return Command(words, {"ENGINE_MOOD": mood})


def is_alive(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
