"""A server of pictures and words to launch in a process of its own: picture_server.py PORT SPEED.

A picture takes its steps / SPEED seconds, all at once side by side; it is a PNG header and end with
nothing between, of the size that was asked for. A completion streams as many words as asked.
"""

import base64
import json
import struct
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, SPEED = int(sys.argv[1]), float(sys.argv[2])


def png(width: int, height: int) -> bytes:
    head = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height)
    return head + b"IEND\xaeB`\x82"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        if self.path == "/v1/completions":
            self.words(body["max_tokens"])
            return
        time.sleep(body["num_inference_steps"] / SPEED)
        picture = png(*map(int, body["size"].split("x")))
        answer = {"data": [{"b64_json": base64.b64encode(picture).decode()}]}
        self.wfile.write(json.dumps(answer).encode())

    def words(self, count: int) -> None:
        for _ in range(count):
            self.event(json.dumps({"choices": [{"text": " word"}]}))
        usage = {"prompt_tokens": 109, "completion_tokens": count}
        self.event(json.dumps({"choices": [], "usage": usage}))
        self.event("[DONE]")

    def event(self, payload: str) -> None:
        self.wfile.write(f"data: {payload}\n\n".encode())

    def log_message(self, format: str, *values: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
