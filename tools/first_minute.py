"""The film at the head of the README: a start, a chat, a picture and a cut-out in a terminal.

python -m tools.first_minute PHOTO

It types the commands, records what they print, and has `npx svg-term-cli` draw it. Nothing may
serve on port 8000. The answers are the model's, and the pace is the machine's; only long waits are
cut.
"""

import json
import os
import pty
import random
import select
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from fcntl import ioctl
from pathlib import Path

WIDTH, HEIGHT = 88, 24
FILE = Path(__file__).parents[1] / "docs" / "img" / "first-minute.svg"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
COMMANDS = (
    'tandem chat "What is the capital of France, and what is it known for?" --seed 7',
    'tandem draw "a large red circle left of a small blue star" --size 128x128 --seed 3 '
    "-o image.png",
    "tandem cutout photo.png",
)
LONGEST_WAIT_S = 1.0
KEY_S = 0.045


class Film:
    """What a terminal shows, in asciinema's form."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._lines = [json.dumps({"version": 2, "width": WIDTH, "height": HEIGHT})]

    def show(self, text: str, after_s: float) -> None:
        self._now_s += min(after_s, LONGEST_WAIT_S)
        self._lines.append(json.dumps([round(self._now_s, 3), "o", text]))

    def type(self, command: str) -> None:
        self.show("$ ", 0.1)
        for key in command:
            self.show(key, KEY_S * random.uniform(0.5, 1.5))
        self.show("\r\n", 0.4)

    def run(
        self, command: list[str], folder: str, until: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Show what a command prints, to its end, or to the line that begins with `until`."""
        own, its = pty.openpty()
        ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        env = {**os.environ, "TERM": "xterm-256color", "PATH": PATH}
        process = subprocess.Popen(
            command, stdin=its, stdout=its, stderr=its, cwd=folder, env=env, start_new_session=True
        )
        os.close(its)
        shown, last = "", time.monotonic()
        while process.poll() is None or select.select([own], [], [], 0.1)[0]:
            if not select.select([own], [], [], 0.1)[0]:
                continue
            try:
                text = os.read(own, 65536).decode(errors="ignore")
            except OSError:
                break
            now = time.monotonic()
            self.show(text, now - last)
            shown, last = shown + text, now
            if until is not None and f"\n{until}" in shown and shown.endswith("\n"):
                break
        return process

    def draw(self, path: Path) -> None:
        """Write the film as a picture that moves."""
        self.show("$ ", LONGEST_WAIT_S)
        for _ in range(4):
            self.show("", LONGEST_WAIT_S)
        with tempfile.NamedTemporaryFile("w", suffix=".cast") as cast:
            cast.write("\n".join(self._lines) + "\n")
            cast.flush()
            options = ["--window", "--in", cast.name, "--out", str(path)]
            subprocess.run(["npx", "--yes", "svg-term-cli", *options], check=True)


def main() -> None:
    film = Film()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "photo.png").write_bytes(Path(sys.argv[1]).read_bytes())
        film.type("make serve")
        server = film.run(["tandem", "serve"], folder, until="Or open")
        try:
            for command in COMMANDS:
                film.type(command)
                film.run(shlex.split(command), folder).wait()
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
    film.draw(FILE)


if __name__ == "__main__":
    main()
