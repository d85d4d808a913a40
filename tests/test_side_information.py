"""Side information of cameras and views, known and unknown."""

import itertools

import pytest
import torch

from reid_models.side_information import SideInformation, check_indices
from tests.slow_branches import slow_side_row

DIM = 5


@pytest.mark.parametrize(("cameras", "views"), [(3, 0), (3, 1), (3, 4), (0, 4), (1, 2)])
@torch.no_grad()
def test_every_pair_of_known_and_unknown(cameras: int, views: int) -> None:
    torch.manual_seed(0)
    side = SideInformation(cameras, DIM, coefficient=3.0, view_count=views)
    cameras, views = max(cameras, 1), max(views, 1)
    assert side.table_KC.shape == (cameras * views, DIM)
    table_KVC = side.table_KC.reshape(cameras, views, DIM)
    pairs = list(itertools.product(range(-1, cameras), range(-1, views)))
    expected = torch.stack([3.0 * slow_side_row(table_KVC, *pair) for pair in pairs])
    camera_B, view_B = torch.tensor(pairs).T.contiguous()
    torch.testing.assert_close(side(camera_B, view_B), expected.unsqueeze(1))
    torch.testing.assert_close(
        side(camera_B), torch.stack([expected[pairs.index((c, -1))] for c, _ in pairs]).unsqueeze(1)
    )
    torch.testing.assert_close(side(None, None), expected[0].reshape(1, 1, DIM))


def test_unknown_cameras_teach_every_row_alike_and_known_ones_their_own() -> None:
    side = SideInformation(3, DIM, coefficient=2.0)
    side(torch.tensor([1, -1])).sum().backward()
    expected = torch.tensor([2 / 3, 2 + 2 / 3, 2 / 3]).unsqueeze(1).expand(3, DIM)
    torch.testing.assert_close(side.table_KC.grad, expected)


def test_an_index_beyond_the_table_fails_even_unchecked() -> None:
    side = SideInformation(3, DIM, coefficient=1.0, view_count=2)
    with pytest.raises(IndexError):
        side(torch.tensor([3]), torch.tensor([0]))
    with pytest.raises(IndexError):
        side(torch.tensor([0]), torch.tensor([2]))


@pytest.mark.parametrize(("cameras", "views"), [(1, 0), (0, 1), (1, 1)])
def test_a_table_of_one_row_is_refused(cameras: int, views: int) -> None:
    message = f"at least 2 cameras or 2 views, got {cameras} and {views}"
    with pytest.raises(ValueError, match=message):
        SideInformation(cameras, DIM, coefficient=1.0, view_count=views)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([0, 2, 1]), r"view indices must lie in 0\.\.1, .* unknown view; got 0\.\.2"),
        (torch.tensor([-2, 0, 1]), r"got -2\.\.1"),
        (torch.tensor([0.0, 1.0, 1.0]), r"views must be int64 of shape \[3\], got torch.float32"),
        (torch.tensor([[0, 1, 1]]), r"of shape \[1, 3\]"),
    ],
)
def test_wrong_indices_are_named(indices: torch.Tensor, message: str) -> None:
    check_indices(torch.tensor([0, -1, 1]), what="view", count=2, batch=3)
    with pytest.raises(ValueError, match=message):
        check_indices(indices, what="view", count=2, batch=3)
