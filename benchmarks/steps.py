"""What `benchmarks.models` times: systems, ways to run them, batches, and one step of each."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.plain_models import plain_model
from reid_models import ReidLoss, ReidModel, create_model

Task = Literal["inference", "training"]
Step = Callable[[], object]

_LARGEST_DIFFERENCE = 1e-4
_BLOCK = 16


@dataclass(frozen=True, kw_only=True)
class System:
    """A network as it was published, or a small one for a test."""

    model: str
    image_size: tuple[int, int]
    identities: int = 751
    cameras: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> ReidModel:
        torch.manual_seed(0)
        return create_model(
            self.model,
            self.identities,
            image_size=self.image_size,
            camera_count=self.cameras,
            **self.options,
        )


SYSTEMS = {
    system.model: system
    for system in (
        System(model="fusion_reid", image_size=(256, 128), cameras=6),
        System(model="levit_s", image_size=(256, 128)),
        System(model="levit_l", image_size=(256, 128)),
        System(model="lvit_net", image_size=(224, 224)),
        System(model="la_transformer", image_size=(224, 224)),
        System(model="la_transformer_pp", image_size=(224, 224), identities=62),
    )
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to run a network."""

    plain: bool = False
    autocast: torch.dtype | None = None
    channels_last: bool = False
    compiled: bool = False


VARIANTS = {
    "plain": Variant(plain=True),
    "plain_fp16": Variant(plain=True, autocast=torch.float16),
    "ours": Variant(),
    "ours_cl": Variant(channels_last=True),
    "ours_bf16": Variant(autocast=torch.bfloat16),
    "ours_bf16_cl": Variant(autocast=torch.bfloat16, channels_last=True),
    "ours_compiled": Variant(compiled=True),
    "ours_bf16_compiled": Variant(autocast=torch.bfloat16, compiled=True),
    "ours_bf16_cl_compiled": Variant(autocast=torch.bfloat16, channels_last=True, compiled=True),
}


@dataclass(frozen=True)
class Batch:
    """Random pictures, four an identity."""

    images: Tensor
    cameras: Tensor | None
    identities: Tensor

    @classmethod
    def draw(cls, system: System, size: int, device: torch.device) -> "Batch":
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(size, 3, *system.image_size, generator=generator).to(device)
        order = torch.arange(size, device=device)
        cameras = order % system.cameras if system.cameras else None
        return cls(images, cameras, order // 4 % system.identities)


def check_equal(model: ReidModel, plain: nn.Module, batch: Batch) -> float:
    """The largest relative difference of the two embeddings, over images and blocks, in eval mode.

    A block is a few neighbouring columns, and measured by its own length: the features that an
    embedding joins differ in scale, and what is wrong in a small one must not hide behind a large.

    Raises:
        ValueError: it is beyond what float32 explains.
    """
    model.eval()
    plain.eval()
    with torch.no_grad():
        ours, theirs = (m(batch.images, batch.cameras).embedding for m in (model, plain))
    lengths = torch.stack([block.norm(dim=1) for block in theirs.split(_BLOCK, dim=1)])
    apart = torch.stack([block.norm(dim=1) for block in (ours - theirs).split(_BLOCK, dim=1)])
    relative = torch.where(apart == 0, 0.0, apart / lengths)  # a dead block has length 0
    difference = float(relative.max())
    if not difference < _LARGEST_DIFFERENCE:
        first = _BLOCK * int(relative.amax(dim=1).argmax())
        raise ValueError(
            f"{type(model).__name__} and its plain form differ by {difference:.1e} of their "
            f"length in the columns from {first} on: their times cannot be compared"
        )
    return difference


def make_step(network: nn.Module, model: ReidModel, task: Task, batch: Batch, way: Variant) -> Step:
    """What is timed: one pass of the network over the batch, which is left without gradients."""
    images = batch.images
    if way.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    autocast = torch.autocast(
        images.device.type, dtype=way.autocast, enabled=way.autocast is not None
    )
    if task == "inference":

        def embed() -> object:
            with torch.no_grad(), autocast:
                return network(images, batch.cameras).embedding

        return embed

    loss = ReidLoss(model.loss_layout)

    def train() -> object:
        with autocast:
            value, _ = loss(network(images, batch.cameras), batch.identities)
        value.backward()
        network.zero_grad(set_to_none=True)
        return value

    return train


def make_networks(model: ReidModel, ways: dict[str, Variant]) -> dict[str, nn.Module]:
    """The network of each variant, on the model's device; only another layout of the weights is
    another copy of them."""
    last: ReidModel | None = None
    networks: dict[str, nn.Module] = {}
    plain = plain_model(model)
    for name, way in ways.items():
        if way.channels_last and last is None:
            last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        network = plain if way.plain else (last if way.channels_last else model)
        assert network is not None
        networks[name] = torch.compile(network) if way.compiled else network
    return networks
