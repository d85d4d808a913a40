"""Generalised-mean pooling against its formula, number by number."""

import pytest
import torch

from reid_models.pooling import GeM


@pytest.mark.parametrize("power", [1.0, 2.5, 3.0])
@torch.no_grad()
def test_gem_equals_its_formula_on_values_of_both_signs(power: float) -> None:
    torch.manual_seed(0)
    map_BChw = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    map_BChw[1, 2] = -map_BChw[1, 2].abs()
    pooled = GeM(power).double()(map_BChw)
    assert pooled.shape == (2, 3)
    for image, features in zip(map_BChw, pooled, strict=True):
        for channel, value in zip(image, features, strict=True):
            powers = [max(x, 1e-6) ** power for x in channel.flatten().tolist()]
            expected = (sum(powers) / len(powers)) ** (1 / power)
            assert value.item() == pytest.approx(expected, rel=1e-6)
    assert pooled[1, 2].item() == pytest.approx(1e-6)


def test_gem_starts_at_three_and_learns_its_power() -> None:
    pool = GeM()
    assert pool.p.tolist() == [3.0]
    pool(torch.rand(2, 3, 4, 5)).sum().backward()
    assert pool.p.grad is not None
    assert pool.p.grad.item() > 0, "a higher power is nearer to the largest value"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_gem_of_a_half_precision_map_is_taken_in_float32(dtype: torch.dtype) -> None:
    map_BChw = torch.full((1, 1, 2, 2), -1.0, dtype=dtype)
    pooled = GeM()(map_BChw)
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(1e-6, rel=1e-3), "the cube of 1e-6 is 0 in half precision"
