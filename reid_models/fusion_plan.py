"""Which parts of FusionReID have to run for the features that are wanted, and no others.

Each feature hangs on a chain of parts: backbone, Local Refinement Unit, pooling, and the stacked
Heterogeneous Transmission Modules, of which each branch's new summary may read the other branch.
The plan is made once from the names of the features; running it needs no further decision.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

Branch = Literal["cnn", "transformer"]
BRANCHES: tuple[Branch, ...] = get_args(Branch)

HtmMode = Literal["encode_fuse", "encode", "fuse", "fuse_encode"]
"""What a Heterogeneous Transmission Module does with the two summaries, in this order: "encode"
each among its own branch's tokens (SEU), "fuse" each with the other branch's tokens (MFU)."""

FEATURE_NAMES = (
    "cnn_global",
    "transformer_global",
    "cnn_initial",
    "transformer_initial",
    "cnn_fused",
    "transformer_fused",
)
"""The six supervised features: of each branch alone, pooled behind the LRU, behind the last HTM."""


@dataclass(frozen=True)
class FeaturePlan:
    """What is wanted, and the branches that each stage works on for it, in BRANCHES' order."""

    features: tuple[str, ...]
    """The wanted features, in the order of FEATURE_NAMES."""

    backbones: tuple[Branch, ...]
    """Branches whose network runs."""

    refined: tuple[Branch, ...]
    """Branches whose Local Refinement Unit runs."""

    pooled: tuple[Branch, ...]
    """Branches whose refined map is pooled to the first summary."""

    htms: tuple[tuple[Branch, ...], ...]
    """For each HTM that runs, first to last, the branches whose new summary it has to give."""


def plan_features(wanted: Collection[str], *, htm_depth: int, mode: HtmMode) -> FeaturePlan:
    """The least work that gives the features `wanted`, which are some of `FEATURE_NAMES`."""
    fused = _in_order({branch for branch in BRANCHES if f"{branch}_fused" in wanted})
    htms: list[tuple[Branch, ...]] = []
    summaries = fused
    if fused:
        for _ in range(htm_depth):
            htms.insert(0, summaries)
            # Encoded tokens carry their own branch's summary to the other branch.
            summaries = BRANCHES if mode == "encode_fuse" else summaries
    pooled = {*summaries, *(branch for branch in BRANCHES if f"{branch}_initial" in wanted)}
    reads_other_branch = bool(fused) and mode != "encode"
    refined = {*pooled, *(BRANCHES if reads_other_branch else ())}
    backbones = {*refined, *(branch for branch in BRANCHES if f"{branch}_global" in wanted)}
    return FeaturePlan(
        features=tuple(name for name in FEATURE_NAMES if name in wanted),
        backbones=_in_order(backbones),
        refined=_in_order(refined),
        pooled=_in_order(pooled),
        htms=tuple(htms),
    )


def _in_order(branches: Collection[Branch]) -> tuple[Branch, ...]:
    return tuple(branch for branch in BRANCHES if branch in branches)
