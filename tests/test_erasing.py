import math

import numpy as np
import pytest
import torch

from pipelines.counter_random import uniform
from pipelines.engine.erasing import ErasingConfig, apply_erasing, erase_boxes

HEIGHT, WIDTH = 64, 32
CONFIG = {"probability": 0.5, "area": (0.02, 1 / 3), "aspect": 0.3}


def boxes_of(positions, *, seed=1, step=2, height=HEIGHT, width=WIDTH, **changes):
    return erase_boxes(seed, step, np.asarray(positions), height, width, **{**CONFIG, **changes})


def reference_box(seed, step, position, height, width):
    """One image at a time, one try after the other, as the augmentation is usually written."""
    if uniform("erasing/wanted", seed, step, position) >= 0.5:
        return [0, 0, 0, 0]
    for attempt in range(10):
        share = float(uniform("erasing/area", seed, step, position, attempt))
        area = height * width * (0.02 + share * (1 / 3 - 0.02))
        log_aspect = float(uniform("erasing/aspect", seed, step, position, attempt))
        low, high = math.log(0.3), math.log(1 / 0.3)
        aspect = math.exp(low + log_aspect * (high - low))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top = int(uniform("erasing/place", seed, step, position, 0) * (height - h + 1))
            left = int(uniform("erasing/place", seed, step, position, 1) * (width - w + 1))
            return [top, left, h, w]
    return [0, 0, 0, 0]


@pytest.mark.parametrize(("height", "width"), [(64, 32), (12, 90), (3, 2), (1, 1)])
def test_boxes_are_those_of_the_plain_loop(height, width):
    expected = [reference_box(1, 2, position, height, width) for position in range(200)]
    assert boxes_of(range(200), height=height, width=width).tolist() == expected


def test_half_of_the_images_get_a_box_anywhere_inside_but_smaller():
    boxes = boxes_of(range(20_000))
    erased = boxes[boxes[:, 2] > 0]
    assert len(erased) / len(boxes) == pytest.approx(0.5, abs=0.02)
    top, left, height, width = erased.T
    assert (height < HEIGHT).all()
    assert (width < WIDTH).all()
    assert top.min() == 0
    assert left.min() == 0
    assert (top + height).max() == HEIGHT
    assert (left + width).max() == WIDTH


def test_area_is_uniform():
    height, width = boxes_of(range(20_000), probability=1.0, aspect=1.0, width=HEIGHT)[:, 2:].T
    assert (height == width).all()
    share = height * width / HEIGHT**2
    assert share.min() == pytest.approx(0.02, abs=0.005)  # whole pixels
    assert share.max() == pytest.approx(1 / 3, abs=0.01)
    assert share.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.002)
    assert share.std() == pytest.approx((1 / 3 - 0.02) / math.sqrt(12), abs=0.002)


def test_logarithm_of_the_aspect_ratio_is_uniform():
    area = {"area": (0.1, 0.1), "height": 1000, "width": 1000}
    height, width = boxes_of(range(20_000), probability=1.0, **area)[:, 2:].T
    log_aspect = np.log(height / width)
    limit = math.log(1 / 0.3)
    assert log_aspect.min() == pytest.approx(-limit, abs=0.02)
    assert log_aspect.max() == pytest.approx(limit, abs=0.02)
    assert log_aspect.mean() == pytest.approx(0, abs=0.03)
    assert log_aspect.std() == pytest.approx(2 * limit / math.sqrt(12), abs=0.02)


def test_probability_zero_and_one():
    assert not boxes_of(range(100), probability=0.0).any()
    assert (boxes_of(range(100), probability=1.0)[:, 2] > 0).all()


def test_pixels_do_not_depend_on_the_number_of_workers():
    images = torch.rand(16, 3, HEIGHT, WIDTH)
    positions = np.arange(16)

    def erased(part):
        boxes = boxes_of(positions[part])
        return apply_erasing(images[part].clone(), boxes, 1, 2, positions[part])

    whole = erased(slice(0, 16))
    parts = torch.cat([erased(slice(start, start + 4)) for start in range(0, 16, 4)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, images)


def test_noise_is_standard_normal_inside_the_box_and_nothing_changes_outside():
    positions = np.arange(64)
    boxes = boxes_of(positions, probability=1.0)
    images = torch.full((64, 3, HEIGHT, WIDTH), 7.0).contiguous(memory_format=torch.channels_last)
    result = apply_erasing(images, boxes, 1, 2, positions)
    assert result is images
    noise = []
    for image, (top, left, height, width) in zip(result, boxes.tolist(), strict=True):
        box = image[:, top : top + height, left : left + width]
        assert int((image != 7.0).sum()) == 3 * height * width
        assert not torch.equal(box[0], box[1])
        noise.append(box.flatten())
    values = torch.cat(noise)
    assert float(values.mean()) == pytest.approx(0, abs=0.02)
    assert float(values.std()) == pytest.approx(1, abs=0.02)
    assert float((values.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.01)


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 3}])
def test_seed_and_step_change_boxes_and_noise(change):
    positions = np.arange(8)
    where = {"seed": 1, "step": 2, **change}
    assert (boxes_of(positions) != boxes_of(positions, **where)).any()
    boxes = boxes_of(positions, probability=1.0)
    images = torch.zeros(8, 3, HEIGHT, WIDTH)
    one = apply_erasing(images.clone(), boxes, 1, 2, positions)
    other = apply_erasing(images.clone(), boxes, where["seed"], where["step"], positions)
    assert not torch.equal(one, other)


def test_no_box_leaves_the_batch_as_it_is():
    images = torch.rand(4, 3, HEIGHT, WIDTH)
    boxes = np.zeros((4, 4), dtype=np.int64)
    assert torch.equal(apply_erasing(images.clone(), boxes, 1, 2, np.arange(4)), images)


@pytest.mark.parametrize(
    "wrong", [{"probability": 1.5}, {"area": (0.5, 0.2)}, {"area": (0.1, 1.2)}, {"aspect": 0.0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ErasingConfig(**wrong)
