"""Losses of two workers against one worker that has the whole batch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reid_models.metric_losses import BatchHardTripletLoss, CenterLoss

ROOT = Path(__file__).parents[1]

TWO_WORKERS = """
import os, sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from reid_models.metric_losses import BatchHardTripletLoss, CenterLoss

torch.set_num_threads(1)
folder = sys.argv[1]
child = os.fork()
rank = int(child == 0)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
mine = slice(12 * rank, 12 * rank + 12)
data = torch.load(f"{folder}/data.pt", weights_only=True)
labels = data["labels"][mine]
results = {}
for across in (True, False):
    layer = nn.Linear(5, 3)
    layer.load_state_dict(data["layer"])
    model = DistributedDataParallel(layer)
    features = model(data["features"][mine])
    triplet, center = BatchHardTripletLoss(across_workers=across), CenterLoss(4)
    (triplet(features, labels) + center(features, labels)).backward()
    results[across] = {"gradient": layer.weight.grad, "centers": center.centers_Cd}
torch.save(results, f"{folder}/results-{rank}.pt")
distributed.destroy_process_group()
if child:
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""

Results = dict[bool, dict[str, Tensor]]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3).state_dict()
    return {"layer": layer, "features": torch.randn(24, 5), "labels": torch.arange(24) % 4}


@pytest.fixture(scope="module")
def results(
    data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Results, Results]:
    """What either worker found, with triplets across the workers and without."""
    folder = tmp_path_factory.mktemp("workers")
    torch.save(data, folder / "data.pt")
    subprocess.run(
        [sys.executable, "-c", TWO_WORKERS, str(folder)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    zero, one = (torch.load(folder / f"results-{r}.pt", weights_only=True) for r in (0, 1))
    return zero, one


@pytest.mark.parametrize("across", [True, False])
def test_workers_share_their_centers_and_if_asked_to_their_triplets(
    data: dict[str, Any], results: tuple[Results, Results], across: bool
) -> None:
    zero, one = (worker[across] for worker in results)
    layer, labels = torch.nn.Linear(5, 3), data["labels"]
    layer.load_state_dict(data["layer"])
    center, out = CenterLoss(4), layer(data["features"])
    (BatchHardTripletLoss()(out, labels) + center(out, labels)).backward()
    assert torch.equal(zero["centers"], one["centers"])
    torch.testing.assert_close(zero["centers"], center.centers_Cd)
    assert torch.equal(zero["gradient"], one["gradient"])
    assert torch.allclose(zero["gradient"], layer.weight.grad, atol=1e-5) == across
