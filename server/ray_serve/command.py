"""`tandem ray`: the application on a cluster of Ray's, or on one of this machine alone."""

import os
import signal
from typing import Any

import typer

RAY_VARIABLES = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "1",
}
"""How Ray's processes should run: parts of streams go from one to the next by gRPC, not through
Ray's store of objects, and on one event loop; bodies and pictures may have any size. The first one
would also have a HAProxy take requests, and keep Ray's log to files."""


def ray_command(fleet: dict[str, Any], *, host: str, port: int, address: str | None) -> int:
    """Serve until told to stop. Returns the exit code.

    Args:
        fleet: the fields of `Fleet`.
        address: of a running cluster; None starts one on this machine.
    """
    for name, value in RAY_VARIABLES.items():  # Ray reads them when it is imported
        os.environ.setdefault(name, value)
    import ray
    from ray import serve

    from server.ray_serve.application import Fleet, build

    application = build(Fleet(**fleet))
    ray.init(address=address, include_dashboard=False if address is None else None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(application, name="tandem", route_prefix="/")
        signal.pause()
    except KeyboardInterrupt:
        return 0
    except RuntimeError as error:
        typer.echo(f"tandem: {error}", err=True)
    finally:
        serve.shutdown()  # running requests end before, within drain_timeout_s
    return 1
