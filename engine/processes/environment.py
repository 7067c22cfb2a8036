"""Makes the environments of child processes."""

import os
from collections.abc import Mapping


def environment_with(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with some variables set. The program `env` would do the same, but
    a small container may lack it."""
    return {**os.environ, **variables}  # noqa: TID251 (handed on, not read)
