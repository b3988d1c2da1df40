"""YAML tags for the configuration classes: read and written as plain data.

A constructor builds one known dataclass from a mapping, nothing else: what a file can do is choose
values of fields.
"""

import re
from collections.abc import Callable
from typing import Any, cast

import yaml


class ConfigLoader(yaml.SafeLoader):
    """SafeLoader that also reads tuples, and 1e-5 (text in YAML 1.1) as a number."""


class ConfigDumper(yaml.SafeDumper):
    """SafeDumper that also writes tuples and the tagged classes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


TAG = "tag:yaml.org,2002:python/object:"
TUPLE_TAG = "tag:yaml.org,2002:python/tuple"
LOADERS: tuple[Any, ...] = (yaml.SafeLoader, yaml.FullLoader, yaml.UnsafeLoader, ConfigLoader)

ConfigLoader.add_constructor(
    TUPLE_TAG,
    lambda loader, node: tuple(loader.construct_sequence(cast(yaml.SequenceNode, node), deep=True)),
)
ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
ConfigDumper.add_representer(
    tuple, lambda dumper, data: dumper.represent_sequence(TUPLE_TAG, list(data), flow_style=True)
)
ConfigDumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True),
)


def register_class(cls: type, modules: tuple[str, ...], build: Callable[..., Any]) -> None:
    """Read ``!!python/object:<module>.<class>`` with ``build(**mapping)`` on every loader.

    It is written with the first of ``modules``.
    """

    def construct(loader: Any, node: Any) -> Any:
        return build(**loader.construct_mapping(node, deep=True))

    for module in modules:
        for loader in LOADERS:
            loader.add_constructor(f"{TAG}{module}.{cls.__name__}", construct)
    tag = f"{TAG}{modules[0]}.{cls.__name__}"
    ConfigDumper.add_representer(
        cls, lambda dumper, data: dumper.represent_mapping(tag, vars(data))
    )
