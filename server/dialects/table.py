"""The dialects that this server speaks: one row each, from the folder of the dialect."""

from server.dialects.a1111.routes import A1111
from server.dialects.anthropic.routes import ANTHROPIC
from server.dialects.dialect import Dialect
from server.dialects.llamacpp.routes import LLAMACPP
from server.dialects.lmstudio.routes import LMSTUDIO
from server.dialects.ollama.routes import OLLAMA

DIALECTS: tuple[Dialect, ...] = (ANTHROPIC, LMSTUDIO, OLLAMA, A1111, LLAMACPP)
