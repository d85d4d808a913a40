"""The recipes that come along: every published experiment resolves to its published settings."""

import json
import math

import pytest
import torch
import yaml

import reid_models
from pipelines.datasets.transfer import TRANSFERS
from pipelines.engine import AverageConfig, ScheduleConfig
from pipelines.engine.schedule import learning_rate
from pipelines.experiments import Experiment
from pipelines.recipe import Recipe
from pipelines.recipe_file import check_recipe, dump_recipe, list_recipes, load_recipe, open_recipe

FILES = {name: open_recipe(name)[0] for name in list_recipes()}
EXPERIMENTS = {
    f"{name}/{experiment}": found
    for name, file in FILES.items()
    for experiment, found in file.experiments.items()
}
DATASETS = {
    *("market1501", "dukemtmc", "msmt17", "cuhk03", "veri776", "vehicleid"),
    *("cars196", "cub200", "university1652", "pku_reid", *TRANSFERS),
}


def schedule(recipe: Recipe) -> ScheduleConfig:
    return ScheduleConfig(
        epochs=recipe.train.epochs, steps_per_epoch=1, **recipe.schedule.model_dump()
    )


def rates(recipe: Recipe) -> list[float]:
    """Of epochs 1, 2, ... of parameters that are no bias."""
    shape = schedule(recipe)
    return [learning_rate(shape, recipe.optim.lr, e) for e in range(1, recipe.train.epochs + 1)]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_resolves_and_reads_back(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.recipe == name.replace("/", "-")
    assert recipe.dataset in DATASETS
    assert check_recipe(yaml.safe_load(dump_recipe(recipe)), "copy") == recipe


@pytest.mark.parametrize(("name", "experiment"), EXPERIMENTS.items(), ids=EXPERIMENTS)
def test_every_experiment_says_what_was_published(name: str, experiment: Experiment) -> None:
    published = experiment.published
    assert published is not None
    assert published.source
    assert all(0 < value <= 100 for value in published.figures.values())
    if "mAP" in published.figures:
        assert published.ap is not None
    if not published.figures:
        assert "No figure" in (published.note or "")


def test_no_two_experiments_of_a_recipe_are_the_same_training() -> None:
    for name, file in FILES.items():
        seen: dict[str, str] = {}
        for experiment in file.experiments:
            plain = load_recipe(f"{name}/{experiment}").to_dict() | {"recipe": ""}
            key = json.dumps(plain, sort_keys=True)
            if experiment != "market_code":  # another figure of market_paper's training
                assert key not in seen, f"{name}/{experiment} is {seen.get(key)}"
            seen[key] = experiment


def test_all_published_experiments_are_there() -> None:
    counts = {name: len(file.experiments) for name, file in FILES.items()}
    assert counts == {
        "demo": 0,
        "fusion_reid": 45,
        "la_tf_plus": 6,
        "la_transformer": 4,
        "levit": 19,
        "lvit_net": 10,
    }
    assert all(file.departures for name, file in FILES.items() if name != "demo")


FUSION_REID = {
    **{f"market_l{n}": ("market1501", {"htm_depth": n}) for n in range(1, 7)},
    **{f"msmt17_l{n}": ("msmt17", {"htm_depth": n}) for n in range(1, 7)},
    **{f"msmt17_d{d}": ("msmt17", {"fusion_dim": d}) for d in (384, 576, 1152, 1536)},
    "duke": ("dukemtmc", {"htm_depth": 2, "fusion_dim": 768, "patch_stride": 12}),
    "market_s16": ("market1501", {"patch_stride": 16}),
    "msmt17_r152": ("msmt17", {"cnn": "resnet152.tv_in1k"}),
    "msmt17_t2t14_r101": ("msmt17", {"cnn": "resnet101.tv_in1k", "transformer": "t2t_vit_t_14"}),
    "msmt17_t2t24_r50": ("msmt17", {"cnn": "resnet50.tv_in1k", "transformer": "t2t_vit_t_24"}),
    "msmt17_deit_r50": ("msmt17", {"transformer": "deit_base_patch16_224.fb_in1k"}),
    "msmt17_res50_only": ("msmt17", {"cnn": "resnet50.tv_in1k", "transformer": None}),
    "market_vit_only": ("market1501", {"cnn": None, "patch_stride": 12}),
}


@pytest.mark.parametrize("name", FUSION_REID)
def test_fusion_reid_differs_by_network_alone(name: str) -> None:
    dataset, options = FUSION_REID[name]
    recipe, base = load_recipe(f"fusion_reid/{name}"), load_recipe("fusion_reid")
    assert recipe.dataset == dataset
    assert {key: getattr(recipe.model, key) for key in options} == options
    assert recipe.model.seu_sharing == "shared"
    for section in ("input", "augment", "batch", "loss", "optim", "schedule", "train"):
        assert getattr(recipe, section) == getattr(base, section)


def test_fusion_reid_has_the_published_rates() -> None:
    recipe = load_recipe("fusion_reid/msmt17_l2")
    weights = {1: 5.450e-4, 5: 2.525e-3, 9: 4.505e-3, 10: 4.962e-3, 60: 3.753e-3}
    weights |= {90: 2.505e-3, 120: 1.258e-3, 150: 3.443e-4, 180: 1e-5}
    biases = {1: 1.045e-3, 5: 5.025e-3, 9: 9.005e-3, 10: 9.924e-3, 60: 7.503e-3}
    biases |= {90: 5.005e-3, 120: 2.508e-3, 150: 6.792e-4, 180: 1e-5}
    shape, lr = schedule(recipe), recipe.optim.lr
    for epoch, rate in weights.items():
        assert learning_rate(shape, lr, epoch) == pytest.approx(rate, rel=5e-4)
    for epoch, rate in biases.items():
        bias_lr = lr * recipe.optim.bias_lr_factor
        assert learning_rate(shape, bias_lr, epoch) == pytest.approx(rate, rel=5e-4)
    assert len(rates(recipe)) == 180


LEVIT_RUNS = """
market_s      levit_s 256x128  64 0.12 75 25 4 0.45 -
market_l      levit_l 256x128  64 0.12 75 25 4 0.45 -
market_l_384  levit_l 384x128  64 0.12 75 25 4 0.45 -
msmt17_s      levit_s 256x128  64 0.12 75 25 4 0.45 stem
msmt17_l      levit_l 256x128  64 0.12 75 25 4 0.45 stem
msmt17_l_384  levit_l 384x128  64 0.12 75 25 4 0.45 stem
duke_s        levit_s 256x128  64 0.12 75 25 4 0.45 -
duke_l        levit_l 256x128  64 0.12 75 25 4 0.45 -
duke_l_384    levit_l 384x128  64 0.12 75 25 4 0.45 stem
veri_s        levit_s 256x256  64 0.12 75 25 4 0.45 stem
veri_l        levit_l 256x256  64 0.12 75 25 4 0.45 stem,stage1
vehicleid_s   levit_s 256x256 256 0.20 75 25 4 0.45 -
vehicleid_l   levit_l 256x256 256 0.20 75 25 4 0.45 -
university_s  levit_s 384x384  48 0.15 15 15 6 0.10 -
university_l  levit_l 384x384  48 0.15 15 15 6 0.10 -
cars_s        levit_s 256x256  48 0.04 55 25 6 0.20 -
cars_l        levit_l 256x256  48 0.04 55 25 6 0.20 -
cub_s         levit_s 256x256  48 0.04 55 25 6 0.20 -
cub_l         levit_l 256x256  48 0.04 55 25 6 0.20 -
"""
PLATEAU = {0.12: (0.01309, 41), 0.20: (0.02182, 41), 0.04: (0.00459, 37), 0.15: (0.03092, 19)}
"""Base rate -> the rate that is held, and how many sets of weights are averaged."""


@pytest.mark.parametrize("run", LEVIT_RUNS.split("\n")[1:-1], ids=lambda run: run.split()[0])
def test_levit_has_the_flags_of_its_published_commands(run: str) -> None:
    name, network, size, batch, lr, cosine, extra, images, erased, frozen = run.split()
    recipe = load_recipe(f"levit/{name}")
    assert recipe.model.name == network
    assert "{}x{}".format(*recipe.input.image_size) == size
    assert recipe.batch.identities * recipe.batch.images == int(batch)
    assert recipe.batch.images == int(images)
    assert recipe.augment.erase_area == (0.02, float(erased))
    assert ",".join(recipe.optim.freeze) == frozen.strip("-")
    assert recipe.train.epochs == int(cosine) + int(extra)
    assert recipe.batch.identities % 2 == 0, "published on two workers"

    base, length, hold = float(lr), int(cosine), int(0.8 * int(cosine))
    plateau, snapshots = PLATEAU[base]
    by_epoch = rates(recipe)
    assert by_epoch[:5] == pytest.approx([base * (0.01 + 0.99 * e / 5) for e in range(1, 6)])
    for epoch in range(5, hold + 1):
        fall = 1 + math.cos(math.pi * (epoch - 5) / (length - 5))
        assert by_epoch[epoch - 1] == pytest.approx(base / 2 * fall)
    assert by_epoch[hold - 1 :] == pytest.approx([plateau] * snapshots, abs=5e-6)
    average = AverageConfig(**recipe.average.model_dump())
    assert average.kind == "uniform"
    assert average.members(schedule(recipe)) == snapshots


def test_levit_keeps_pixels_and_triplets_as_published() -> None:
    recipe = load_recipe("levit/cub_l")
    assert (recipe.input.mean, recipe.input.std) == ((0, 0, 0), (1, 1, 1))
    assert recipe.optim.nesterov
    assert recipe.optim.bias_lr_factor == 1
    assert recipe.optim.weight_decay == 5e-4
    assert recipe.loss.normalize_triplet
    assert recipe.loss.across_workers
    assert recipe.loss.label_smoothing == 0
    assert recipe.loss.margin is None
    assert recipe.embed.flip


def test_la_transformer_decays_fifteen_times() -> None:
    published = [2.400e-4, 1.920e-4, 1.536e-4, 1.229e-4, 9.830e-5, 7.864e-5, 6.291e-5, 5.033e-5]
    published += [4.027e-5, 3.221e-5, 2.577e-5, 2.062e-5, 1.649e-5, 1.319e-5, 1.056e-5]
    for name in ("la_transformer/market", "la_tf_plus/code", "la_tf_plus/ce_tl"):
        recipe = load_recipe(name)
        assert rates(recipe)[0::2] == rates(recipe)[1::2] == pytest.approx(published, rel=5e-4)
        assert (recipe.unfreeze.start, recipe.unfreeze.every) == (2, 2)
        assert recipe.unfreeze.at_epoch0
        assert recipe.batch.identities * recipe.batch.images == 32


@pytest.mark.parametrize(
    ("name", "smoothing", "triplets", "on"),
    [
        ("ce", 0.0, 0.0, None),
        ("ce_ls", 0.1, 0.0, None),
        ("ce_tl", 0.0, 1.0, "logits"),
        ("ce_ls_tl", 0.1, 1.0, "logits"),
        ("code", 0.1, 1.0, "logits"),
        ("paper", 0.1, 1.0, "feature"),
    ],
)
def test_la_tf_plus_has_the_losses_of_its_tables(
    name: str, smoothing: float, triplets: float, on: str | None
) -> None:
    recipe = load_recipe(f"la_tf_plus/{name}")
    assert recipe.loss.label_smoothing == smoothing
    assert recipe.loss.triplet_weight == triplets
    assert recipe.loss.margin == 0.3
    assert recipe.model.triplet_on == on
    assert recipe.model.heads == ("pooled" if name in ("code", "paper") else "rows")
    weighted = (recipe.model.gelt_lambda, recipe.model.gelt_lambda_on)
    assert weighted == ((0.8, "global") if name == "paper" else (8.0, "local"))


def test_lvit_net_has_both_readings_of_its_rate() -> None:
    card = rates(load_recipe("lvit_net/market_to_duke"))
    assert card[:10] == pytest.approx([0.001 * epoch for epoch in range(1, 11)])
    assert card[34] == pytest.approx(0.005)
    assert card[59] == pytest.approx(0, abs=1e-15)
    for name in ("duke_to_market", "msmt17_to_market", "without_market"):
        assert rates(load_recipe(f"lvit_net/{name}")) == card
    for source, base in (
        ("market_to_duke", 1e-3),
        ("duke_to_market", 1e-3),
        ("msmt17_to_market", 4e-4),
    ):
        recipe = load_recipe(f"lvit_net/{source}_pat")
        pat = rates(recipe)
        assert pat[:4] == pytest.approx([base * (0.01 + 0.99 * e / 5) for e in range(1, 5)])
        fall = [1 + math.cos(math.pi * epoch / 120) for epoch in range(5, 61)]
        assert pat[4:] == pytest.approx([base * (0.002 + 0.499 * share) for share in fall])


@pytest.mark.parametrize(
    ("name", "classes", "cameras", "millions", "dim"),
    [
        ("fusion_reid/market_l2", 751, 6, 158.456903, 5888),
        ("fusion_reid/msmt17_t2t14_r50", 1041, 15, None, 5504),
        ("fusion_reid/msmt17_t2t24_r50", 1041, 15, None, 2048 + 512 + 4 * 768),
        ("fusion_reid/msmt17_vit_only", 1041, 15, 87.391 - 0.769, 768),
        ("levit/market_s", 751, 6, 5.132, 1920),
        ("levit/university_l", 751, 0, 16.637, 3840),
        ("la_transformer/market", 751, 6, 91.841537 - 0.577519, 10752),
        ("la_tf_plus/ce", 62, 2, 89.362515 - 0.577519, 10752),
        ("la_tf_plus/paper", 62, 2, 86.589485 - 0.577519, 10752),
        ("lvit_net/market_to_duke", 751, 6, None, 1536),
    ],
)
def test_the_networks_have_the_published_sizes(
    name: str, classes: int, cameras: int, millions: float | None, dim: int
) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = reid_models.create_model(
            recipe.model.name,
            classes,
            image_size=recipe.input.image_size,
            camera_count=cameras,
            **recipe.model.options(),
        )
    assert model.embedding_dim == dim
    if millions is not None:
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        assert parameters == pytest.approx(millions, abs=6e-4)
