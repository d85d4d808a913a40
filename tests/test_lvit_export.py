"""Every reading of LViT-Net can be exported."""

import pytest
import torch
from torch import Tensor, nn

from reid_models.lvit_net import LViTNet
from tests.small_lvit import CLASS_TOKENS, IMAGE_SIZE, LEVELS, SWIN, small_model


class Embedding(nn.Module):
    def __init__(self, model: LViTNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.model(images_BCHW).embedding


def shallow_model(**options: object) -> LViTNet:
    """Two in a row of what repeats, or as many as "levels" has parts: more only cost time."""
    count = 4 if "dfcf_placement" in options else 2
    model = small_model(local_blocks=1, dfcf_iterations=count, **options)
    for parent in model.transformer.modules():
        if isinstance(blocks := getattr(parent, "blocks", None), nn.Sequential):
            parent.blocks = blocks[:count]
    return model


@pytest.mark.parametrize(
    "options", [{}, LEVELS, CLASS_TOKENS, SWIN], ids=["default", "levels", "class_tokens", "swin"]
)
@torch.no_grad()
def test_every_reading_can_be_exported_for_any_batch(options: dict[str, object]) -> None:
    model = Embedding(shallow_model(**options)).eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(
        model, (torch.randn(2, 3, *IMAGE_SIZE),), dynamic_shapes=shapes
    ).module()
    for batch in (1, 5):
        images = torch.randn(batch, 3, *IMAGE_SIZE)
        torch.testing.assert_close(exported(images), model(images), rtol=1e-4, atol=1e-4)
