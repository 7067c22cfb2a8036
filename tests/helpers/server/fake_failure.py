"""How a request to `fake_engine` fails."""

from dataclasses import dataclass

from engine import errors


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Ends a completion with finish reason `error` after a number of tokens."""

    after: int = 0
    code: str = "out_of_kv_blocks"
    message: str = "the request needs 9 blocks; the pool has 8; raise kv_cache_memory_gib"
    param: str | None = None

    def value(self) -> errors.Failure:
        return errors.Failure(self.code, self.message, self.param)
