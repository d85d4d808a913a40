"""LEViT written out slowly, one window and one head at a time, over its published layout.

Shapes: B batch, C channels, H W rows and columns of a map, d channels of an attention head,
T positions of a window.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu

from reid_models import create_model
from reid_models.levit import LEViT
from reid_models.levit_units import LEVIT_L, LEVIT_S
from reid_models.weights import StateDict

Shapes = dict[str, tuple[int, ...]]

CLASSES = 4
SIZES = {"levit_s": LEVIT_S, "levit_l": LEVIT_L}


def norm_shapes(prefix: str, channels: int) -> Shapes:
    names = ("weight", "bias", "running_mean", "running_var")
    shapes: Shapes = {f"{prefix}.{name}": (channels,) for name in names}
    return {**shapes, f"{prefix}.num_batches_tracked": ()}


def grouped_shapes(prefix: str, number: int, channels: int) -> Shapes:
    shapes: Shapes = {f"{prefix}.{number}.weight": (channels, 4, 3, 3)}
    return shapes | norm_shapes(f"{prefix}.{number + 1}", channels)


def pointwise_shapes(prefix: str, number: int, inputs: int, outputs: int) -> Shapes:
    shapes: Shapes = {f"{prefix}.{number}.weight": (outputs, inputs, 1, 1)}
    return shapes | norm_shapes(f"{prefix}.{number + 1}", outputs)


def stage_shapes(
    prefix: str, depth: int, inputs: int, outputs: int, heads: int, ratio: int
) -> Shapes:
    shapes: Shapes = {}
    for i in range(depth):
        block = f"{prefix}.layers.{i}"
        dim = inputs if i == 0 else outputs
        if heads:
            for name in ("q", "k", "v", "v_spe"):
                shapes |= grouped_shapes(f"{block}.{name}", 0, dim)
            shapes[f"{block}.attns.logit_scale"] = (heads, 1, 1)
            shapes |= pointwise_shapes(f"{block}.proj", 1, dim, dim)
        shapes |= pointwise_shapes(f"{block}.mlp.proj_in", 0, dim, ratio * outputs)
        shapes |= grouped_shapes(f"{block}.mlp.local_enhance", 0, ratio * outputs)
        shapes |= pointwise_shapes(f"{block}.mlp.proj_out", 0, ratio * outputs, outputs)
        if i == 0:
            shapes |= grouped_shapes(f"{block}.skip", 0, dim)
            shapes |= pointwise_shapes(f"{block}.skip", 2, dim, outputs)
    return shapes


def classifier_shapes(size: str, ratio: int = 1) -> Shapes:
    """The published ImageNet layout, written out."""
    dim, heads = {"levit_s": (96, (1, 2)), "levit_l": (192, (2, 4))}[size]
    shapes: Shapes = {}
    for i, (inputs, outputs) in enumerate([(3, 16), (16, 16), (16, 32), (32, 32)]):
        shapes[f"stem.{i}.conv.weight"] = (outputs, inputs, 3, 3)
        shapes |= norm_shapes(f"stem.{i}.norm", outputs)
    shapes |= stage_shapes("stage1", 4, 32, dim, heads[0], ratio)
    shapes |= stage_shapes("stage2", 7, dim, 2 * dim, heads[1], ratio)
    shapes |= stage_shapes("stage3", 4, 2 * dim, 4 * dim, 0, ratio)
    return shapes | {"head.weight": (1000, 4 * dim), "head.bias": (1000,)}


def reid_shapes(size: str, ratio: int = 1) -> Shapes:
    """The published layout of a re-identification model."""
    shapes: Shapes = {}
    for name, shape in classifier_shapes(size, ratio).items():
        unit, _, rest = name.partition(".")
        if unit == "stage3":
            shapes |= {f"branch_1.{rest}": shape, f"branch_2.{rest}": shape}
        elif unit != "head":
            shapes[name.replace("stage", "layer")] = shape
    dim = 4 * SIZES[size].dim
    for i in range(5):
        shapes |= norm_shapes(f"bn_list.{i}", dim)
        shapes[f"class_list.{i}.weight"] = (CLASSES, dim)
    return shapes


def random_state(shapes: Shapes) -> StateDict:
    """Tensors in which no value hides an error: no zeros, no ones, scales on both sides of 100."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("logit_scale"):
            state[name] = 3 + 3 * torch.rand(shape, generator=generator)
        elif len(shape) == 4:
            fan_in = math.prod(shape[1:])
            state[name] = torch.randn(shape, generator=generator) / fan_in**0.5
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            state[name] = 0.1 * torch.randn(shape, generator=generator)
    return state


def part(w: StateDict, prefix: str) -> StateDict:
    return {k.removeprefix(f"{prefix}."): v for k, v in w.items() if k.startswith(f"{prefix}.")}


class SlowLEViT:
    """The network, one window and one head at a time, over a published state dict."""

    def __init__(self, state: StateDict, window: int, *, training: bool = False) -> None:
        self.w = {k: v.double() for k, v in state.items()}
        self.window = window
        self.training = training

    def norm(self, w: StateDict, x: Tensor) -> Tensor:
        """Batch norm over every dim but the second."""
        mean, variance = w["running_mean"], w["running_var"]
        if self.training:
            rows = x.transpose(0, 1).flatten(1)
            mean = rows.mean(1)
            variance = ((rows - mean[:, None]) ** 2).mean(1)
        broadcast = (1, -1) + (1,) * (x.ndim - 2)
        x = (x - mean.view(broadcast)) / (variance.view(broadcast) + 1e-5).sqrt()
        return x * w["weight"].view(broadcast) + w["bias"].view(broadcast)

    def layer(self, w: StateDict, x: Tensor, number: int = 0, stride: int = 1) -> Tensor:
        """Convolution `number` and the norm behind it."""
        weight = w[f"{number}.weight"]
        padding, groups = weight.shape[-1] // 2, x.shape[1] // weight.shape[1]
        x = conv2d(x, weight, stride=stride, padding=padding, groups=groups)
        return self.norm(part(w, f"{number + 1}"), x)

    def attention(self, log_scales: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, C, H, W] each -> the same."""
        heads, side, out = len(log_scales), self.window, torch.full_like(v, math.nan)
        width = v.shape[1] // heads
        for top in range(0, v.shape[2], side):
            for left in range(0, v.shape[3], side):
                for head in range(heads):
                    tile = (
                        slice(None),
                        slice(head * width, (head + 1) * width),
                        slice(top, top + side),
                        slice(left, left + side),
                    )
                    q_BTd, k_BTd, v_BTd = (x[tile].flatten(2).transpose(1, 2) for x in (q, k, v))
                    q_BTd = q_BTd / (q_BTd**2).sum(2, keepdim=True).sqrt()
                    k_BTd = k_BTd / (k_BTd**2).sum(2, keepdim=True).sqrt()
                    scale = math.exp(min(log_scales[head].item(), 4.6052))
                    scores_BTT = scale * q_BTd @ k_BTd.transpose(1, 2)
                    mixed_BTd = scores_BTT.softmax(dim=2) @ v_BTd
                    out[tile] = mixed_BTd.transpose(1, 2).unflatten(2, (side, side))
        return out

    def block(self, w: StateDict, x: Tensor, stride: int) -> Tensor:
        if "attns.logit_scale" in w:
            q, k, v = (self.layer(part(w, name), x) for name in ("q", "k", "v"))
            mixed = self.attention(w["attns.logit_scale"], q, k, v)
            local = self.layer(part(w, "v_spe"), v)
            x = x + self.layer(part(w, "proj"), relu(mixed + local), 1)
        hidden = relu(self.layer(part(w, "mlp.proj_in"), x))
        hidden = relu(self.layer(part(w, "mlp.local_enhance"), hidden, stride=stride))
        skip = x
        if "skip.0.weight" in w:
            skip = self.layer(part(w, "skip"), self.layer(part(w, "skip"), x, stride=stride), 2)
        return skip + self.layer(part(w, "mlp.proj_out"), hidden)

    def stage(self, name: str, x: Tensor, depth: int, stride: int) -> Tensor:
        for i in range(depth):
            x = self.block(part(self.w, f"{name}.layers.{i}"), x, stride if i == 0 else 1)
        return x

    def trunk(self, x: Tensor, names: tuple[str, str]) -> Tensor:
        for i, stride in enumerate((2, 1, 2, 1)):
            w = part(self.w, f"stem.{i}")
            x = conv2d(x, w["conv.weight"], stride=stride, padding=1)
            x = relu(self.norm(part(w, "norm"), x))
        return self.stage(names[1], self.stage(names[0], x, 4, 2), 7, 2)

    def classifier(self, images: Tensor) -> Tensor:
        x = self.stage("stage3", self.trunk(images, ("stage1", "stage2")), 4, 2)
        return x.mean(3).mean(2) @ self.w["head.weight"].T + self.w["head.bias"]

    def reid(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The five features behind their norms, and their logits."""
        x = self.trunk(images, ("layer1", "layer2"))
        x1, x2 = self.stage("branch_1", x, 4, 1), self.stage("branch_2", x, 4, 1)
        half = -(-x2.shape[2] // 2)
        pooled = [
            x1.mean(3).mean(2),
            x2.mean(3).mean(2),
            x1.max(3)[0].max(2)[0],
            x2[:, :, :half].max(3)[0].max(2)[0],
            x2[:, :, half:].max(3)[0].max(2)[0],
        ]
        features = [self.norm(part(self.w, f"bn_list.{i}"), p) for i, p in enumerate(pooled)]
        return features, [f @ self.w[f"class_list.{i}.weight"].T for i, f in enumerate(features)]


def small_model(size: str = "levit_s", **options: object) -> LEViT:
    torch.manual_seed(0)
    settings: dict[str, object] = {"image_size": (64, 32), "window": 2, **options}
    model = create_model(size, CLASSES, **settings)
    assert isinstance(model, LEViT)
    return model
