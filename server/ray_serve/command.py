"""`tandem ray`: the application on a cluster of Ray's, or on one of this machine alone."""

from typing import Any


def ray_command(fleet: dict[str, Any], *, host: str, port: int, address: str | None) -> int:
    """Serve until told to stop. Returns the exit code.

    Args:
        fleet: the fields of `Fleet`.
        address: of a running cluster; None starts one on this machine.
    """
    import ray
    from ray import serve

    from server.ray_serve.application import Fleet, build

    application = build(Fleet(**fleet))
    ray.init(address=address, include_dashboard=False if address is None else None)
    serve.start(http_options={"host": host, "port": port})
    serve.run(application, name="tandem", route_prefix="/", blocking=True)
    return 0
