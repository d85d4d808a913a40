"""Every registered model's options and what it cannot be built with."""

import ast
import dataclasses
import inspect
import itertools
import textwrap

import pytest

from reid_models import create_model, list_models, model_options
from tests.small_models import CAMERAS, CLASSES, IMAGE_SIZE, SMALL

every_model = pytest.mark.parametrize("name", list_models())


@every_model
def test_options_are_frozen_and_documented(name: str) -> None:
    options = model_options(name)
    instance = options()
    for field in dataclasses.fields(options):
        assert field.kw_only
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(instance, field.name, None)
    documented = [field for cls in options.__mro__[:-1] for field in documented_fields(cls)]
    assert set(documented) == {field.name for field in dataclasses.fields(options)}


def documented_fields(cls: type) -> list[str]:
    """The fields that a class declares, each followed by its docstring."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    documented = [
        before.target.id
        for before, after in itertools.pairwise(body)
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr)
    ]
    assert documented == list(inspect.get_annotations(cls))
    return documented


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="'fusion_red'; the nearest name is 'fusion_reid'"):
        create_model("fusion_red", CLASSES, image_size=IMAGE_SIZE)
    with pytest.raises(ValueError, match="'htm_dept'; the nearest name is 'htm_depth'"):
        create_model("fusion_reid", CLASSES, image_size=IMAGE_SIZE, htm_dept=2)
    with pytest.raises(ValueError, match="'fusion_red'"):
        model_options("fusion_red")


@every_model
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"camera_count": -1}, "camera_count must be at least 0, got -1"),
        ({"image_size": (64,)}, r"\(height, width\) in pixels, got \(64,\)"),
    ],
)
def test_wrong_sizes_of_the_task(name: str, changes: dict[str, object], message: str) -> None:
    task = {"num_classes": CLASSES, "image_size": IMAGE_SIZE, "camera_count": CAMERAS, **changes}
    num_classes = task.pop("num_classes")
    with pytest.raises(ValueError, match=message):
        create_model(name, num_classes, **task, **SMALL[name].options)


@every_model
def test_impossible_image_size_tells_the_possible_ones(name: str) -> None:
    small = SMALL[name]
    with pytest.raises(ValueError, match=small.size_rule):
        create_model(name, CLASSES, image_size=small.impossible_size, **small.options)
