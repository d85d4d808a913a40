"""FusionReID: how deep the two branches are fused, and how the rate warms up.

The paper's ablation over HTM depth is flat from 2 on (mAP on Market-1501 91.5, 91.7, 91.8, 91.7,
91.8, 91.7 for depths 1 to 6), so the depths here stay small.
"""

from ray import tune

from tune_spaces.axes import Space, learning_rate, warmup


def space(*, lr: float, epochs: int) -> Space:
    """Depth, base rate and warm-up around the recipe's `optim.lr` for runs of `epochs`."""
    return {
        "model.htm_depth": tune.choice([1, 2, 3]),
        **learning_rate(lr),
        **warmup(epochs, lr),
    }
