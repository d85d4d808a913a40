"""Safe YAML in which 16:32 is a text: YAML 1.1 takes it for 992, a number to the base of sixty."""

import re
from typing import Any

import yaml

BASE_SIXTY = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


class _Loader(yaml.SafeLoader):
    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0] and BASE_SIXTY.fullmatch(value):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


def load(text: str) -> Any:
    """The plain values in a YAML text; `yaml.YAMLError` where it is none."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
