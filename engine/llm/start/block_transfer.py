"""Opens the address at which a model's KV blocks are lent, and creates what exchanges them."""

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from engine.contract.resolved_config import ResolvedConfig
from engine.contract.text_settings import TextSettings
from engine.errors import ModelLoadError
from engine.llm.kv_transfer.borrower import Borrower
from engine.llm.kv_transfer.channel import Address
from engine.llm.kv_transfer.lender import Lender
from engine.llm.kv_transfer.loans import Loans
from engine.llm.kv_transfer.transfer import KvTransfer
from engine.llm.runner.kv_storage import KvStorage
from engine.llm.start.block_store import check_keeps_blocks
from engine.models.config import ModelConfig

_NUM_PORTS = 64
_FEWEST_KEY_CHARS = 32
_LENT_PART = 2
"""At most one of this many parts of the pool is kept for others."""


@dataclass(frozen=True, slots=True)
class OpenAddress:
    """The bound socket of a worker that lends blocks."""

    listening: socket.socket
    address: Address


def open_address(intent: TextSettings, model_config: ModelConfig) -> OpenAddress | None:
    """Bind the address, before anything that takes long. None without one.

    Raises:
        ModelLoadError: this model's blocks cannot be exchanged, or not at this address or with this
            key.
    """
    if intent.kv_transfer is None:
        return None
    check_keeps_blocks(intent, model_config, "kv_transfer")
    key = _read_key(intent.kv_transfer_key)
    host, port = _host_and_port(intent.kv_transfer)
    listening = _listen(host, port)
    at = listening.getsockname()
    if at[0] in ("0.0.0.0", "::"):
        listening.close()
        raise _refused(f"{host} is no address that others can connect to; name one")
    return OpenAddress(listening, Address(host, at[1], secrets.token_hex(16), key))


def create_transfer(
    opened: OpenAddress,
    memory: KvStorage,
    intent: TextSettings,
    config: ResolvedConfig,
    computed_by: object,
) -> KvTransfer:
    """Create both sides of a loaded model."""
    loans = Loans(
        memory,
        opened.address,
        seconds=intent.kv_lease_duration,
        most_blocks=config.num_kv_blocks // _LENT_PART,
    )
    lender = Lender(opened.listening, opened.address, loans)
    return KvTransfer(loans, lender, Borrower(memory, opened.address.key), computed_by)


def _read_key(file: str | None) -> bytes:
    advice = "make one with: openssl rand -hex 32"
    if file is None:
        raise _refused(f"it needs a kv_transfer_key, the same on all servers; {advice}")
    try:
        key = Path(file).expanduser().read_bytes().strip()
    except OSError as error:
        reason = f"the file with the key cannot be read: {error.strerror}; {advice}"
        raise _refused(reason, "kv_transfer_key") from error
    if len(key) < _FEWEST_KEY_CHARS:
        reason = f"the key has {len(key)} characters, and needs {_FEWEST_KEY_CHARS}; {advice}"
        raise _refused(reason, "kv_transfer_key")
    return key


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = text, "0"
    if not port.isdecimal() or int(port) > 65535:
        raise _refused("it must be HOST or HOST:PORT; an address of IPv6 is in brackets")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _listen(host: str, port: int) -> socket.socket:
    """Listen at the first free port from `port` on, or at any if it is 0."""
    last = min(port + _NUM_PORTS, 65536) if port else 1
    reason = "no port is free"
    for tried in range(port, last):
        try:
            family, _, _, _, at = socket.getaddrinfo(host, tried, type=socket.SOCK_STREAM)[0]
            return socket.create_server(at[:2], family=family)
        except OSError as error:
            reason = error.strerror or str(error)
    raise _refused(f"the address cannot be used: {reason}")


def _refused(reason: str, param: str = "kv_transfer") -> ModelLoadError:
    return ModelLoadError(f"kv_transfer cannot be used: {reason}", param=param)
