"""What a model says of the parts of its embedding is true of its embedding."""

import pytest
import torch

from reid_models import list_models
from tests.small_models import cameras, images, new_model, settled_model


@pytest.mark.parametrize("name", list_models())
def test_parts_make_up_the_embedding(name):
    model = new_model(name).eval()
    names = [part for part, _ in model.embedding_parts]
    widths = [width for _, width in model.embedding_parts]
    assert len(names) == len(set(names)) > 0
    assert all(part and ":" not in part and "," not in part for part in names)
    assert min(widths) > 0
    assert sum(widths) == model.embedding_dim
    with torch.no_grad():
        assert model(images(2), cameras(2)).embedding.shape == (2, model.embedding_dim)


def test_slices_of_fusion_reid_are_the_features_of_their_names():
    whole = settled_model("fusion_reid")
    with torch.no_grad():
        embedding = whole(images(3), cameras(3)).embedding
    start = 0
    slices = {}
    for part, width in whole.embedding_parts:
        slices[part] = embedding[:, start : start + width]
        start += width
    assert len(slices) == 6
    for part, expected in slices.items():
        single = new_model("fusion_reid", embed_features=(part,)).eval()
        single.load_state_dict(whole.state_dict())
        assert single.embedding_parts == ((part, expected.shape[1]),)
        with torch.no_grad():
            found = single(images(3), cameras(3)).embedding
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not any(
        torch.allclose(slices[one], slices[two], atol=1e-3)
        for one in slices
        for two in slices
        if one < two and slices[one].shape == slices[two].shape
    )
