"""LEViT's and LViT-Net's recipes against what was published: every figure, and every setting that
is not among the flags of `test_recipe_files`."""

import pytest
import torch

from pipelines.datasets import find_dataset
from pipelines.recipe import Recipe
from pipelines.recipe_file import load_recipe, open_recipe
from pipelines.train_job import trained_parts
from reid_models import create_model
from reid_models.levit import HEAD_NAMES, LEViTOptions
from reid_models.lvit_net import LViTNetOptions
from tests.small_lvit import SMALL

LEVIT = open_recipe("levit")[0].experiments
LVIT_NET = open_recipe("lvit_net")[0].experiments

LEVIT_RETRIEVAL = """
market_s      95.6354 98.2779 99.0202 88.7031
market_l      95.6354 98.3967 99.0499 89.0475
market_l_384  96.0511 98.3670 99.0202 89.9444
msmt17_s      82.9659 90.8997 93.3442 62.9266
msmt17_l      84.4155 91.6545 93.7902 65.4685
msmt17_l_384  86.2338 92.8639 94.6393 68.1992
duke_s        90.4847 95.4219 96.9031 80.8951
duke_l        90.3950 95.4219 96.4093 81.2532
duke_l_384    91.1131 95.5117 96.8582 82.5202
veri_s        96.3051 98.5697 99.3445 80.4787
veri_l        96.6031 98.4505 99.0465 80.8354
vehicleid_s   85.4910 97.9624 99.1920 88.2481
vehicleid_l   86.6678 98.1732 99.1569 89.2321
university_s  91.2981 93.4379 94.1512 87.2820
university_l  92.5820 94.0086 94.5792 89.4554
"""
"""R1, R5, R10, mAP."""

LEVIT_CLASSES = """
cars_s        93.8015 96.6056 97.8354 98.7209 82.2265
cars_l        94.2443 96.9622 98.1183 98.8439 82.5822
cub_s         70.7968 80.8069 87.8123 92.6401 74.6709
cub_l         73.1263 81.9548 88.8926 93.1803 75.1080
"""
"""R1, R2, R4, R8, NMI."""

LEVIT_DATASETS = {
    "market": ("market1501", "market", "persons"),
    "msmt17": ("msmt17", "market", "persons"),
    "duke": ("dukemtmc", "market", "persons"),
    "veri": ("veri776", "market", "vehicles"),
    "vehicleid": ("vehicleid", "vehicleid", "vehicles"),
    "university": ("university1652", "university", "geo-localisation"),
    "cars": ("cars196", "leave_one_out", "metric learning"),
    "cub": ("cub200", "leave_one_out", "metric learning"),
}
"""Beginning of the experiment's name -> dataset, protocol, table."""

LVIT_FIGURES = {
    "market_to_duke": ("market1501_to_dukemtmc", 68.2, 49.1),
    "duke_to_market": ("dukemtmc_to_market1501", 71.4, 45.7),
    "msmt17_to_market": ("msmt17_to_market1501", 79.0, 49.6),
}
"""Protocol, R1, mAP."""

WITHOUT = {
    "without_msmt17": ("without_msmt17", 2220),
    "without_cuhk03": ("without_cuhk03", 2494),
    "without_duke": ("without_dukemtmc", 2559),
    "without_market": ("without_market1501", 2510),
}
"""Protocol, and the identities of the three sources."""


def settings(recipe: Recipe, section: str, *varied: str) -> dict[str, object]:
    """A section of a recipe without the keys in which its experiments differ."""
    return getattr(recipe, section).model_dump(exclude=set(varied))


def test_levit_has_every_published_figure() -> None:
    expected: dict[str, tuple[dict[str, float], str | None]] = {}
    for table, names, ap in (
        (LEVIT_RETRIEVAL, ("R1", "R5", "R10", "mAP"), "trapezoid"),
        (LEVIT_CLASSES, ("R1", "R2", "R4", "R8", "NMI"), None),
    ):
        for row in table.strip().splitlines():
            name, *figures = row.split()
            expected[name] = dict(zip(names, map(float, figures), strict=True)), ap
    found = {name: (e.published.figures, e.published.ap) for name, e in LEVIT.items()}
    assert found == expected


def test_levit_says_on_what_its_figures_were_taken() -> None:
    says = {"msmt17": " 32,621 images", "vehicleid": "800 test vehicles", "university": "Satellite"}
    for name, experiment in LEVIT.items():
        assert says.get(name.split("_")[0], "") in (experiment.published.note or ""), name


@pytest.mark.parametrize("name", LEVIT)
def test_levit_shares_the_published_settings(name: str) -> None:
    recipe = load_recipe(f"levit/{name}")
    dataset, protocol, table = LEVIT_DATASETS[name.split("_")[0]]
    assert (recipe.dataset, recipe.evaluate.protocol) == (dataset, protocol)
    assert LEVIT[name].published.source == f"LEViT's official code, results on {table}"
    assert LEViTOptions(**recipe.model.options()) == LEViTOptions()
    assert settings(recipe, "input", "image_size") == {
        "interpolation": "bilinear",
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
    }
    assert settings(recipe, "augment", "erase_area") == {
        "flip": 0.5,
        "pad": 12 if dataset == "university1652" else 8,
        "erase": 0.5,
        "erase_aspect": 0.3,
    }
    assert settings(recipe, "optim", "lr", "freeze") == {
        "name": "sgd",
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "bias_lr_factor": 1,
        "grad_clip": None,
    }
    loss = settings(recipe, "loss")
    assert (loss["id_loss"], loss["id_weight"], loss["triplet_weight"]) == ("softmax", 1, 1)
    assert (loss["center_weight"], loss["label_smoothing"], loss["margin"]) == (0, 0, None)
    assert loss["normalize_triplet"]
    assert loss["across_workers"]
    assert recipe.schedule.granularity == "epoch"
    assert recipe.unfreeze.start is None
    assert recipe.embed.flip


def test_the_recipes_by_themselves_are_their_first_experiments() -> None:
    for name, experiment in (("levit", "market_s"), ("lvit_net", "market_to_duke")):
        recipe, first = load_recipe(name), load_recipe(f"{name}/{experiment}")
        assert recipe.to_dict() | {"recipe": ""} == first.to_dict() | {"recipe": ""}
        assert recipe.train.workers == 1
        assert recipe.train.precision == ("bf16" if name == "levit" else "fp32")


def test_levit_takes_a_satellite_and_five_drone_images_of_a_building() -> None:
    for name in LEVIT:
        views = load_recipe(f"levit/{name}").batch.views
        expected = [("satellite", 1), ("drone", 5)] if name.startswith("university") else []
        assert list(views.items()) == expected, name


@pytest.mark.parametrize("name", ["market_s", "msmt17_s", "veri_l"])
def test_levit_freezes_the_published_parts(name: str) -> None:
    recipe = load_recipe(f"levit/{name}")
    with torch.device("meta"):
        model = create_model("levit_s", 2, image_size=(64, 32), window=2)
    trained_parts(recipe, model)
    units = tuple(f"backbone.{part}." for part in recipe.optim.freeze)
    necks = {f"heads.{head}.neck.bias" for head in HEAD_NAMES[2:]}
    for parameter, tensor in model.named_parameters():
        assert tensor.requires_grad == (
            not parameter.startswith(units or "-") and parameter not in necks
        ), parameter


@pytest.mark.parametrize("name", LVIT_NET)
def test_lvit_net_has_its_source_and_its_figures(name: str) -> None:
    recipe, published = load_recipe(f"lvit_net/{name}"), LVIT_NET[name].published
    if name in WITHOUT:
        protocol, identities = WITHOUT[name]
        assert (recipe.dataset, published.figures) == (protocol, {})
        dataset, variant = find_dataset(recipe.dataset)
        assert dataset.variants[variant].counts["train"].identities == identities
        assert "R1 3.1 and mAP 1.7 above PAT" in published.note
        return
    protocol, rank1, mean = LVIT_FIGURES[name.removesuffix("_pat")]
    assert recipe.dataset == protocol
    assert (published.figures, published.ap) == ({"R1": rank1, "mAP": mean}, "unknown")


@pytest.mark.parametrize("name", LVIT_NET)
def test_lvit_net_shares_the_settings_of_the_summaries_and_of_pat(name: str) -> None:
    recipe = load_recipe(f"lvit_net/{name}")
    assert recipe.seed == 1234
    assert LViTNetOptions(**recipe.model.options()) == LViTNetOptions()
    assert recipe.input.model_dump() == {
        "image_size": (224, 224),
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    assert settings(recipe, "augment", "erase_area", "erase_aspect") == {
        "flip": 0.5,
        "pad": 10,
        "erase": 0.0,
    }
    assert (recipe.batch.identities, recipe.batch.images) == (16, 4)
    assert settings(recipe, "optim", "lr") == {
        "name": "sgd",
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 1e-4,
        "bias_lr_factor": 2,
        "grad_clip": None,
        "freeze": (),
    }
    loss = settings(recipe, "loss")
    assert (loss["id_loss"], loss["id_weight"], loss["triplet_weight"]) == ("softmax", 1, 1)
    assert (loss["center_weight"], loss["label_smoothing"], loss["margin"]) == (0, 0.1, None)
    assert not loss["normalize_triplet"]
    assert recipe.train.epochs == 60
    assert recipe.schedule.granularity == "epoch"
    assert recipe.average.kind == "none"
    assert recipe.unfreeze.start is None
    assert not recipe.embed.flip


@pytest.mark.parametrize("iterations", range(7))
def test_lvit_net_takes_every_number_of_iterations_from_a_recipe(iterations: int) -> None:
    recipe = load_recipe("lvit_net", [f"model.dfcf_iterations={iterations}"])
    options = {**recipe.model.options(), **SMALL}
    with torch.device("meta"):
        model = create_model("lvit_net", 2, image_size=(32, 32), **options)
    loss, unfreezing = trained_parts(recipe, model)
    assert (model.dfcf.iterations, unfreezing) == (iterations, None)
    assert (loss.id_weights, loss.triplet_weights) == ({"fused": 1.0}, {"fused": 1.0})
