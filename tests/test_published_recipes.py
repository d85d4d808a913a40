"""FusionReID's, LA-Transformer's and LA-TF++'s recipes against what was published: every figure,
every network, and the settings that all experiments share."""

import pytest
import torch

from pipelines.experiments import Published
from pipelines.recipe import Recipe
from pipelines.recipe_file import check_recipe, load_recipe, open_recipe
from pipelines.train_job import trained_parts
from reid_models import create_model
from reid_models.fusion_plan import FEATURE_NAMES

FILES = {name: open_recipe(name)[0] for name in ("fusion_reid", "la_transformer", "la_tf_plus")}

FUSION_REID = """
market_l1          market1501 r50  vit   12 1  768 256 91.5 96.1
market_l2          market1501 r50  vit   12 2  768 256 91.7 96.3
market_l3          market1501 r50  vit   12 3  768 256 91.8 96.4
market_l4          market1501 r50  vit   12 4  768 256 91.7 96.2
market_l5          market1501 r50  vit   12 5  768 256 91.8 96.6
market_l6          market1501 r50  vit   12 6  768 256 91.7 96.3
market_s16         market1501 r50  vit   16 2  768 256 90.9 95.9
market_large       market1501 r50  vit   12 2  768 384 91.6 96.2
market_large_s16   market1501 r50  vit   16 2  768 384 91.1 96.0
market_vit_only    market1501 -    vit   12 2  768 256    -    -
duke               dukemtmc   r50  vit   12 2  768 256 83.5 91.0
duke_s16           dukemtmc   r50  vit   16 2  768 256 82.9 90.3
duke_large         dukemtmc   r50  vit   12 2  768 384 83.7 91.0
duke_large_s16     dukemtmc   r50  vit   16 2  768 384 83.5 90.8
msmt17_l1          msmt17     r50  vit   12 1  768 256 69.0 86.0
msmt17_l2          msmt17     r50  vit   12 2  768 256 69.5 86.7
msmt17_l3          msmt17     r50  vit   12 3  768 256 69.3 86.6
msmt17_l4          msmt17     r50  vit   12 4  768 256 69.0 86.6
msmt17_l5          msmt17     r50  vit   12 5  768 256 69.7 86.7
msmt17_l6          msmt17     r50  vit   12 6  768 256 69.5 86.5
msmt17_s16         msmt17     r50  vit   16 2  768 256 68.3 86.1
msmt17_large       msmt17     r50  vit   12 2  768 384 70.5 87.3
msmt17_large_s16   msmt17     r50  vit   16 2  768 384 69.5 86.6
msmt17_r101        msmt17     r101 vit   12 2  768 256 70.5 87.3
msmt17_r152        msmt17     r152 vit   12 2  768 256 71.8 87.9
msmt17_deit_r50    msmt17     r50  deit  12 2  768 256 69.7 86.4
msmt17_deit_r101   msmt17     r101 deit  12 2  768 256 70.3 87.1
msmt17_deit_r152   msmt17     r152 deit  12 2  768 256 70.9 87.5
msmt17_t2t14_r50   msmt17     r50  t2t14 16 2  768 256 61.9 81.6
msmt17_t2t14_r101  msmt17     r101 t2t14 16 2  768 256 63.4 82.6
msmt17_t2t14_r152  msmt17     r152 t2t14 16 2  768 256 64.5 83.4
msmt17_t2t24_r50   msmt17     r50  t2t24 16 2  768 256    -    -
msmt17_t2t24_r101  msmt17     r101 t2t24 16 2  768 256    -    -
msmt17_t2t24_r152  msmt17     r152 t2t24 16 2  768 256    -    -
msmt17_d384        msmt17     r50  vit   12 2  384 256 69.1 86.5
msmt17_d576        msmt17     r50  vit   12 2  576 256 69.3 86.7
msmt17_d1152       msmt17     r50  vit   12 2 1152 256 70.0 86.8
msmt17_d1536       msmt17     r50  vit   12 2 1536 256 69.3 86.6
msmt17_res50_only  msmt17     r50  -     12 2  768 256 54.3 78.1
msmt17_res101_only msmt17     r101 -     12 2  768 256 58.8 81.4
msmt17_res152_only msmt17     r152 -     12 2  768 256 61.0 82.7
msmt17_vit_only    msmt17     -    vit   12 2  768 256 64.6 83.2
msmt17_deit_only   msmt17     -    deit  12 2  768 256 63.3 83.1
msmt17_t2t14_only  msmt17     -    t2t14 16 2  768 256 50.9 73.7
msmt17_t2t24_only  msmt17     -    t2t24 16 2  768 256    -    -
"""
"""Experiment, dataset, CNN, transformer, patch stride, HTM depth, fusion dim, image height; then
mAP and R1."""

NETWORKS = {
    "-": None,
    "r50": "resnet50.tv_in1k",
    "r101": "resnet101.tv_in1k",
    "r152": "resnet152.tv_in1k",
    "vit": "vit_base_patch16_224.orig_in21k",
    "deit": "deit_base_patch16_224.fb_in1k",
    "t2t14": "t2t_vit_t_14",
    "t2t24": "t2t_vit_t_24",
}

BY_DEPTH = """
market cnn_global          86.1 86.2 86.1 86.4 86.2 86.4  94.0 94.2 94.3 94.4 94.4 94.7
market cnn_initial         86.7 86.9 87.1 87.1 87.2 87.1  94.8 94.9 94.7 95.0 95.1 95.3
market cnn_fused           88.2 88.3 88.7 88.6 88.7 88.5  95.2 95.3 95.4 95.5 95.7 95.5
market transformer_global  88.7 88.7 88.9 88.7 88.8 88.8  94.8 95.0 95.2 94.8 94.9 94.9
market transformer_initial 89.4 89.5 89.7 89.7 89.5 89.6  95.2 95.4 95.7 95.7 95.1 95.5
market transformer_fused   90.5 90.9 90.8 90.5 90.6 90.3  95.8 96.0 96.0 95.8 96.4 96.1
msmt17 cnn_global          54.3 55.2 55.2 54.9 55.1 54.8  78.2 79.0 79.3 78.4 78.7 78.7
msmt17 cnn_initial         54.8 55.4 55.4 55.0 55.7 55.4  79.0 79.4 79.5 79.5 79.8 79.2
msmt17 cnn_fused           65.2 65.9 65.5 65.3 65.7 65.8  84.7 85.3 85.2 85.1 85.4 85.3
msmt17 transformer_global  63.0 63.7 63.7 63.4 64.2 63.6  81.8 82.3 82.5 82.3 82.8 82.4
msmt17 transformer_initial 65.1 65.9 65.9 65.6 66.3 65.6  83.6 84.3 84.3 84.1 84.6 84.3
msmt17 transformer_fused   67.0 67.7 67.6 67.4 67.4 66.8  85.2 85.6 85.5 85.7 86.1 85.4
"""
"""mAP then R1 of single features at HTM depths 1 to 6."""

BY_BACKBONE = """
msmt17_r101       66.9 85.8 68.4 86.1
msmt17_r152       68.2 86.5 69.6 87.0
msmt17_deit_r50   64.9 84.8 67.0 85.4
msmt17_deit_r101  66.0 85.7 67.5 85.8
msmt17_deit_r152  66.6 85.7 67.6 86.2
msmt17_t2t14_r50  60.8 80.2 56.7 78.3
msmt17_t2t14_r101 62.7 83.0 58.4 79.9
msmt17_t2t14_r152 63.9 83.9 59.1 80.2
"""
"""mAP and R1 of cnn_fused, then of transformer_fused."""


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


def published(recipe: str, experiment: str) -> Published:
    found = FILES[recipe].experiments[experiment].published
    assert found is not None
    return found


def resolved(recipe: str, experiment: str) -> Recipe:
    return check_recipe(FILES[recipe].resolve(experiment), recipe)


def test_every_network_and_figure_of_fusion_reid() -> None:
    assert [row[0] for row in rows(FUSION_REID)] == list(FILES["fusion_reid"].experiments)
    for name, dataset, cnn, transformer, stride, depth, width, height, *figures in rows(
        FUSION_REID
    ):
        recipe = resolved("fusion_reid", name)
        model = recipe.model.options()
        assert (name, recipe.dataset) == (name, dataset)
        assert (name, model["cnn"], model["transformer"]) == (
            name,
            NETWORKS[cnn],
            NETWORKS[transformer],
        )
        sizes = [model[key] for key in ("patch_stride", "htm_depth", "fusion_dim")]
        assert (name, sizes) == (name, [int(stride), int(depth), int(width)])
        assert (name, recipe.input.image_size) == (name, (int(height), 128))
        expected = {
            what: float(x) for what, x in zip(("mAP", "R1"), figures, strict=True) if x != "-"
        }
        assert (name, published("fusion_reid", name).figures) == (name, expected)


def test_every_figure_of_fusion_reids_single_features() -> None:
    expected: dict[str, dict[str, tuple[float, float]]] = {}
    for dataset, feature, *figures in rows(BY_DEPTH):
        for depth in range(6):
            of_depth = expected.setdefault(f"{dataset}_l{depth + 1}", {})
            of_depth[feature] = float(figures[depth]), float(figures[6 + depth])
    for name, *figures in rows(BY_BACKBONE):
        cnn, transformer = tuple(map(float, figures[:2])), tuple(map(float, figures[2:]))
        expected[name] = {"cnn_fused": cnn, "transformer_fused": transformer}
    found = {
        name: experiment.published.features
        for name, experiment in FILES["fusion_reid"].experiments.items()
        if experiment.published and experiment.published.features
    }
    assert found == expected
    assert set(found["market_l1"]) == set(FEATURE_NAMES)


def test_fusion_reid_is_trained_as_published() -> None:
    recipe = resolved("fusion_reid", "market_l2")
    assert recipe.seed == 1111
    assert recipe.input.model_dump() == {
        "image_size": (256, 128),
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    augment = recipe.augment
    assert (augment.flip, augment.pad, augment.erase) == (0.5, 10, 0.5)
    assert (augment.erase_area, augment.erase_aspect) == ((0.02, 1 / 3), 0.3)
    batch = recipe.batch
    assert (batch.sampler, batch.identities, batch.images) == ("identities", 8, 16)
    loss, optim = recipe.loss, recipe.optim
    assert (loss.id_weight, loss.triplet_weight, loss.label_smoothing) == (1, 1, 0.1)
    assert (loss.id_loss, loss.margin, loss.normalize_triplet) == ("softmax", None, False)
    assert (loss.center_weight, loss.across_workers, loss.lone_anchors) == (0, False, False)
    assert (optim.name, optim.momentum, optim.nesterov, optim.grad_clip, optim.freeze) == (
        "sgd",
        0.9,
        False,
        None,
        (),
    )
    assert (optim.lr, optim.weight_decay, optim.bias_lr_factor) == (0.005, 1e-4, 2)
    assert (recipe.schedule.granularity, recipe.average.kind) == ("epoch", "none")
    assert (recipe.unfreeze.start, recipe.train.epochs) == (None, 180)
    assert (recipe.embed.flip, recipe.evaluate.protocol) == (False, None)
    options = recipe.model.options()
    assert (options["stem"], options["last_stride"], options["side_information"]) == ("reid", 1, 3)
    assert (options["drop_path"], options["fusion_heads"], options["lru_kernel"]) == (0.1, 12, 1)
    assert (options["htm_mode"], options["seu_sharing"], options["mfu_sharing"]) == (
        "encode_fuse",
        "shared",
        "separate",
    )


LA_FIGURES = {
    ("la_transformer", "market"): {"mAP": 68.75, "R1": 86.05, "R5": 94.03, "R10": 96.38},
    ("la_transformer", "market_paper"): {"mAP": 94.5, "R1": 98.27},
    ("la_transformer", "market_code"): {"mAP": 92.79, "R1": 98.34, "R5": 99.73, "R10": 99.82},
    ("la_transformer", "cuhk03_paper"): {"R1": 98.7},
    ("la_tf_plus", "ce"): {"mAP": 91.5, "R1": 92.9, "R5": 96.4},
    ("la_tf_plus", "ce_ls"): {"mAP": 91.9, "R1": 92.9, "R5": 96.4},
    ("la_tf_plus", "ce_tl"): {"mAP": 91.0, "R1": 89.2, "R5": 92.9},
    ("la_tf_plus", "ce_ls_tl"): {"mAP": 92.1, "R1": 96.4, "R5": 96.4},
    ("la_tf_plus", "code"): {"mAP": 93.2, "R1": 92.9, "R5": 100.0},
    ("la_tf_plus", "paper"): {"mAP": 93.2, "R1": 92.9, "R5": 100.0},
}


@pytest.mark.parametrize(("name", "experiment"), LA_FIGURES)
def test_the_la_transformers_are_trained_as_published(name: str, experiment: str) -> None:
    figures = published(name, experiment)
    assert figures.figures == LA_FIGURES[name, experiment]
    standard = (name, experiment) == ("la_transformer", "market")
    assert figures.ap == (
        None if "mAP" not in figures.figures else "top10" if not standard else "unknown"
    )
    recipe = resolved(name, experiment)
    assert recipe.evaluate.protocol == (None if standard else "latf_legacy")
    dataset = "pku_reid" if name == "la_tf_plus" else experiment.partition("_")[0]
    assert recipe.dataset == {"market": "market1501"}.get(dataset, dataset)
    assert (recipe.input.image_size, recipe.input.interpolation) == ((224, 224), "bicubic")
    assert recipe.input.mean == (0.485, 0.456, 0.406)
    assert recipe.input.std == (0.229, 0.224, 0.225)
    augment, optim = recipe.augment, recipe.optim
    assert (augment.flip, augment.pad, augment.erase) == (0.5, 0, 0)
    assert (optim.name, optim.lr, optim.weight_decay) == ("adam", 3e-4, 5e-4)
    assert (optim.bias_lr_factor, recipe.train.epochs) == (1, 30)
    assert recipe.batch.sampler == ("identities" if experiment == "paper" else "shuffle")
    assert recipe.batch.identities * recipe.batch.images == 32
    if name == "la_transformer":
        assert (recipe.loss.triplet_weight, recipe.loss.label_smoothing) == (0, 0)
        weights = "vit_base_patch16_224.orig_in21k_ft_in1k"
    else:
        assert recipe.seed == 42
        weights = "vit_base_patch16_224.augreg_in21k_ft_in1k"
    assert recipe.model.options()["transformer"] == weights


@pytest.mark.parametrize(("experiment", "lone"), [("code", True), ("paper", False)])
def test_the_code_of_la_tf_plus_keeps_anchors_without_a_partner(
    experiment: str, lone: bool
) -> None:
    recipe = load_recipe(f"la_tf_plus/{experiment}", ["model.transformer=vit_tiny_patch16_224"])
    with torch.device("meta"):
        model = create_model(recipe.model.name, 62, image_size=(32, 32), **recipe.model.options())
    loss, _ = trained_parts(recipe, model)
    assert (loss.triplet.lone_anchors, loss.triplet.margin) == (lone, 0.3)
