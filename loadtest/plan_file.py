"""Reads YAML in which a range such as `10:40` stays a string."""

import re
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """A loader that reads `10:40` as YAML 1.2 does, and not as 640 in base 60 as YAML 1.1 does."""


_INT_TAG = "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _INT_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT_TAG, re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))


def load_yaml(path: Path) -> Any:
    """The document in `path`. Raises yaml.YAMLError."""
    return yaml.load(path.read_text(), _Loader)
