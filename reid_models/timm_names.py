"""Names of timm networks, checked before anything is built, with the nearest name in the error."""

from difflib import get_close_matches

import timm


def check_timm_name(name: str, *, option: str) -> None:
    """Accept `architecture` or `architecture.pretrained_tag` as timm writes them.

    Args:
        name: the name to check.
        option: the option that holds it, for the error.

    Raises:
        ValueError: timm knows no such architecture, or no such tag of it.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        nearest = get_close_matches(architecture, timm.list_models(), n=1, cutoff=0.0)[0]
        raise ValueError(f"{option}={name!r} is no timm model; the nearest name is {nearest!r}")
    if not tag:
        return
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if name not in tagged:
        known = ", ".join(tagged) or "none"
        raise ValueError(f"{option}={name!r}: timm has no such weights; it has {known}")
