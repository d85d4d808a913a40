"""Which space belongs to which system."""

from collections.abc import Callable

from tune_spaces import fusion_reid
from tune_spaces.axes import Space

SPACES: dict[str, Callable[..., Space]] = {"fusion_reid": fusion_reid.space}


def list_spaces() -> list[str]:
    """Names of the systems that have a space."""
    return sorted(SPACES)


def search_space(model: str, *, lr: float, epochs: int) -> Space:
    """The space of a system around a recipe's rate, for trials of `epochs`; `KeyError` where there
    is none."""
    return SPACES[model](lr=lr, epochs=epochs)
