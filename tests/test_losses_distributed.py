"""Losses of two workers against one worker that has the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reid_models.metric_losses import BatchHardTripletLoss, CenterLoss

ROOT = Path(__file__).parents[1]

TWO_WORKERS = """
import os, sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from reid_models.metric_losses import BatchHardTripletLoss, CenterLoss

torch.set_num_threads(1)
folder, across = sys.argv[1], sys.argv[2] == "across"
child = os.fork()
rank = int(child == 0)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
mine = slice(12 * rank, 12 * rank + 12)
data = torch.load(f"{folder}/data.pt", weights_only=True)
layer = nn.Linear(5, 3)
layer.load_state_dict(data["layer"])
model = DistributedDataParallel(layer)
features = model(data["features"][mine])
labels = data["labels"][mine]
triplet, center = BatchHardTripletLoss(across_workers=across), CenterLoss(4)
(triplet(features, labels) + center(features, labels)).backward()
result = {"gradient": layer.weight.grad, "centers": center.centers_Cd}
torch.save(result, f"{folder}/result-{rank}.pt")
distributed.destroy_process_group()
if child:
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


@pytest.mark.parametrize("across", [True, False])
def test_workers_share_their_centers_and_if_asked_to_their_triplets(
    tmp_path: Path, across: bool
) -> None:
    torch.manual_seed(0)
    layer, features, labels = torch.nn.Linear(5, 3), torch.randn(24, 5), torch.arange(24) % 4
    data = {"layer": layer.state_dict(), "features": features, "labels": labels}
    torch.save(data, tmp_path / "data.pt")
    subprocess.run(
        [sys.executable, "-c", TWO_WORKERS, str(tmp_path), "across" if across else "own"],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    zero, one = (torch.load(tmp_path / f"result-{r}.pt", weights_only=True) for r in (0, 1))
    center, out = CenterLoss(4), layer(features)
    (BatchHardTripletLoss()(out, labels) + center(out, labels)).backward()
    assert torch.equal(zero["centers"], one["centers"])
    torch.testing.assert_close(zero["centers"], center.centers_Cd)
    assert torch.equal(zero["gradient"], one["gradient"])
    assert torch.allclose(zero["gradient"], layer.weight.grad, atol=1e-5) == across
