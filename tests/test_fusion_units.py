"""The units of FusionReID and the plan of what has to run, each by itself."""

import itertools

import pytest
import torch

from reid_models.fusion_plan import BRANCHES, FEATURE_NAMES, plan_features
from reid_models.fusion_units import (
    EncodingUnit,
    HeterogeneousTransmissionModule,
    LocalRefinementUnit,
)
from tests.slow_fusion import HEADS, OURS, slow_htm, slow_lru, slow_seu
from tests.small_fusion import count

DIM = 12
MODES = ("encode_fuse", "encode", "fuse", "fuse_encode")
SHARING = ("shared", "separate")


def inputs() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    lengths = {"cnn": 6, "transformer": 11}
    summaries = {branch: torch.randn(2, DIM, dtype=torch.float64) for branch in BRANCHES}
    tokens = {b: torch.randn(2, n, DIM, dtype=torch.float64) for b, n in lengths.items()}
    return summaries, tokens


def scrambled(module: torch.nn.Module) -> torch.nn.Module:
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def htm(mode: str, seu_sharing: str, mfu_sharing: str) -> HeterogeneousTransmissionModule:
    torch.manual_seed(1)
    sharing = {"seu_sharing": seu_sharing, "mfu_sharing": mfu_sharing}
    return scrambled(HeterogeneousTransmissionModule(DIM, HEADS, mode=mode, **sharing))


@pytest.mark.parametrize(
    ("mode", "seu_sharing", "mfu_sharing"), itertools.product(MODES, SHARING, SHARING)
)
@torch.no_grad()
def test_every_mode_and_sharing_pattern(mode: str, seu_sharing: str, mfu_sharing: str) -> None:
    module = htm(mode, seu_sharing, mfu_sharing)
    summaries, tokens = inputs()
    expected = slow_htm(
        module.state_dict(),
        summaries,
        tokens,
        layout=OURS,
        mode=mode,
        seu_sharing=seu_sharing,
        mfu_sharing=mfu_sharing,
    )
    both = module(summaries, tokens)
    assert tuple(both) == BRANCHES
    for branch in BRANCHES:
        torch.testing.assert_close(both[branch], expected[branch], rtol=1e-10, atol=1e-10)
        one = module(summaries, tokens, (branch,))
        assert tuple(one) == (branch,)
        torch.testing.assert_close(one[branch], expected[branch], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("mode", "sharing", "units"),
    [
        ("encode_fuse", ("shared", "separate"), 3),
        ("encode_fuse", ("separate", "separate"), 4),
        ("encode_fuse", ("separate", "shared"), 3),
        ("encode_fuse", ("shared", "shared"), 2),
        ("encode", ("shared", "separate"), 1),
        ("fuse", ("shared", "separate"), 2),
        ("fuse_encode", ("shared", "separate"), 3),
    ],
)
def test_published_patterns_have_their_numbers_of_units(
    mode: str, sharing: tuple[str, str], units: int
) -> None:
    unit = count(EncodingUnit(DIM, HEADS))
    assert unit == 12 * DIM * DIM + 12 * DIM
    assert count(htm(mode, *sharing)) == units * unit


@pytest.mark.parametrize("mode", MODES)
def test_every_unit_that_is_there_learns(mode: str) -> None:
    module = htm(mode, "separate", "separate")
    out = module(*inputs())
    sum(summary.square().sum() for summary in out.values()).backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []


def test_units_start_as_torch_starts_its_layers() -> None:
    """Uniform in +- 1 / sqrt(fan in), where a transformer starts at a spread of 0.02."""
    torch.manual_seed(0)
    module = HeterogeneousTransmissionModule(
        96, 12, mode="encode_fuse", seu_sharing="shared", mfu_sharing="separate"
    )
    linears = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 4 + 2 * 6
    for linear in linears:
        bound = linear.in_features**-0.5
        assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert linear.bias is None or linear.bias.any()


def test_units_drop_nothing_in_training() -> None:
    module = htm("encode_fuse", "shared", "separate").train()
    summaries, tokens = inputs()
    first, second = (module(summaries, tokens) for _ in range(2))
    assert all(torch.equal(first[branch], second[branch]) for branch in BRANCHES)


def test_the_first_token_alone_equals_the_first_of_all_and_so_does_its_gradient() -> None:
    torch.manual_seed(2)
    unit = scrambled(EncodingUnit(DIM, HEADS))
    _, tokens = inputs()
    whole, first = unit(tokens["cnn"])[:, 0], unit.first(tokens["cnn"])
    torch.testing.assert_close(first, whole, rtol=1e-10, atol=1e-10)
    expected = torch.autograd.grad(whole.square().sum(), list(unit.parameters()))
    torch.testing.assert_close(
        torch.autograd.grad(first.square().sum(), list(unit.parameters())), expected
    )
    summary, others = tokens["cnn"][:, 0], tokens["cnn"][:, 1:]
    written_out = slow_seu(unit.state_dict(), summary, others, OURS)[:, 0]
    torch.testing.assert_close(first, written_out, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@torch.no_grad()
def test_local_refinement_unit(kernel: int) -> None:
    torch.manual_seed(0)
    unit = scrambled(LocalRefinementUnit(5, DIM, kernel=kernel)).eval()
    unit[1].running_var.uniform_(0.5, 2.0)
    unit[4].running_mean.uniform_(-1.0, 1.0)
    map_BChw = torch.randn(2, 5, 7, 4, dtype=torch.float64)
    refined = unit(map_BChw)
    assert refined.shape == (2, DIM, 7, 4)
    torch.testing.assert_close(refined, slow_lru(unit.state_dict(), map_BChw, OURS))


def test_plan_of_everything_is_everything() -> None:
    for mode in MODES:
        plan = plan_features(FEATURE_NAMES, htm_depth=3, mode=mode)
        assert plan.features == FEATURE_NAMES
        assert plan.backbones == plan.refined == plan.pooled == BRANCHES
        assert plan.htms == (BRANCHES, BRANCHES, BRANCHES)


def test_plan_follows_the_summaries_back_through_the_modules() -> None:
    plan = plan_features(("cnn_fused",), htm_depth=3, mode="encode_fuse")
    assert plan.htms == (BRANCHES, BRANCHES, ("cnn",))
    assert plan.pooled == BRANCHES
    plan = plan_features(("cnn_fused",), htm_depth=3, mode="fuse")
    assert plan.htms == (("cnn",),) * 3
    assert (plan.backbones, plan.refined, plan.pooled) == (BRANCHES, BRANCHES, ("cnn",))
    plan = plan_features(("transformer_initial", "cnn_global"), htm_depth=3, mode="fuse")
    assert plan.features == ("cnn_global", "transformer_initial")
    assert (plan.backbones, plan.refined, plan.htms) == (BRANCHES, ("transformer",), ())
