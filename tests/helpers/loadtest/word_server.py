"""A server to launch in a process of its own: word_server.py PORT [--child] [--load SECONDS].

Streams as many words as asked, `--word` seconds apart, and counts words as tokens. `--child` leaves
a sleeping process behind it; `--load` answers 503 for so long first. Adapters are loaded in no
time, but for those called `missing`.
"""

import argparse
import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--child", action="store_true")
parser.add_argument("--load", type=float, default=0.0)
parser.add_argument("--word", type=float, default=0.0)
args = parser.parse_args()
READY_AT = time.monotonic() + args.load


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if time.monotonic() < READY_AT:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "loading"}}')
            return
        is_missing = body.get("lora_name") == "missing"
        self.send_response(404 if is_missing else 200)
        self.end_headers()
        if "lora_name" in body:
            self.wfile.write(b'{"error": {"message": "no such adapter"}}' if is_missing else b"{}")
            return
        for _ in range(body["max_tokens"]):
            time.sleep(args.word)
            self.event(json.dumps({"choices": [{"text": " word"}]}))
        usage = {
            "prompt_tokens": len(body["prompt"].split()),
            "completion_tokens": body["max_tokens"],
        }
        self.event(json.dumps({"choices": [], "usage": usage}))
        self.event("[DONE]")

    def event(self, payload: str) -> None:
        self.wfile.write(f"data: {payload}\n\n".encode())

    def log_message(self, format: str, *values: object) -> None:
        pass


if args.child:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
ThreadingHTTPServer(("127.0.0.1", args.port), Handler).serve_forever()
