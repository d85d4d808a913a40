"""The contract of every re-identification network, and the checks they share.

Shapes: B batch, H W image height and width in pixels, D embedding dim.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from reid_models.explanations import Explanation
from reid_models.output import LossTerm, ReidOutput
from reid_models.side_information import check_indices


class ReidModel(nn.Module, ABC):
    """Base class: checks the input once, then hands it to the network's `extract`.

    In training mode the output carries the logits and the metric features of every head named by
    `loss_layout`; in eval mode the heads are not computed.
    """

    published_image_size: ClassVar[tuple[int, int]] = (256, 128)
    """(height, width) in pixels that the system was published with."""

    embedding_dim: int
    """D of `ReidOutput.embedding`."""

    loss_layout: tuple[LossTerm, ...]
    """Which head gets which loss with which weight."""

    def __init__(self, num_classes: int, *, image_size: tuple[int, int], camera_count: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if camera_count < 0:
            raise ValueError(f"camera_count must be at least 0, got {camera_count}")
        if len(image_size) != 2 or min(image_size) < 1:
            raise ValueError(f"image_size must be (height, width) in pixels, got {image_size}")
        self.num_classes = num_classes
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.camera_count = camera_count

    @abstractmethod
    def extract(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> ReidOutput:
        """The network itself, on checked input."""

    @abstractmethod
    def load_branch_weights(self, default: Literal["timm"] | None) -> None:
        """Fill each branch from its own weights option, or from `default` where that is None."""

    @property
    def embedding_parts(self) -> tuple[tuple[str, int], ...]:
        """Name and width of the features that stand side by side in the embedding, in order."""
        return (("embedding", self.embedding_dim),)

    def explanations(self) -> tuple[Explanation, ...]:
        """What can be looked at in this network in eval mode, in the order to show it; here
        nothing."""
        return ()

    def forward(self, images_BCHW: Tensor, cameras_B: Tensor | None = None) -> ReidOutput:
        """Features of a batch of images.

        Args:
            images_BCHW: [B, 3, H, W] float, normalised, with (H, W) equal to `image_size`.
            cameras_B: [B] int64, index of the training camera (0 .. camera_count - 1) that took
                each image, -1 where it is unknown; None means unknown for all. Models without
                camera information (camera_count 0 or 1) ignore it.

        Raises:
            ValueError: wrong image shape or type, or a camera index outside -1 .. camera_count-1.
                The camera index is read only on the CPU, so that a GPU is never waited for; there
                an index that is too large fails in the table lookup itself.
        """
        self._check_images(images_BCHW)
        if self.camera_count < 2:
            cameras_B = None
        if cameras_B is not None:
            # not len(): it would fix the batch size of an exported model
            batch = images_BCHW.shape[0]
            check_indices(cameras_B, what="camera", count=self.camera_count, batch=batch)
        return self.extract(images_BCHW, cameras_B)

    def _check_images(self, images_BCHW: Tensor) -> None:
        height, width = self.image_size
        if images_BCHW.ndim != 4 or tuple(images_BCHW.shape[1:]) != (3, height, width):
            raise ValueError(
                f"this model takes images of shape [B, 3, {height}, {width}], "
                f"got {list(images_BCHW.shape)}: resize them, or build the model with another "
                "image_size"
            )
        if not images_BCHW.is_floating_point():
            raise ValueError(
                f"images must be normalised floating point values, got {images_BCHW.dtype}"
            )
