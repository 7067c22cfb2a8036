"""The dialects that are spoken: a row each, from the folder of the dialect."""

from server.dialects.dialect import Dialect
from server.dialects.ollama.routes import OLLAMA

DIALECTS: tuple[Dialect, ...] = (OLLAMA,)
