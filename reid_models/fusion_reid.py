"""FusionReID: a CNN and a vision transformer, fused by stacked mutual attention.

Both branches see the same image. Local Refinement Units bring their last maps to one channel dim;
Heterogeneous Transmission Modules then let one summary token a branch read the other branch's
tokens. Six features are supervised and, concatenated, searched.

Source: Wang et al., "Unity is Strength: Unifying Convolutional and Transformeral Features for
Better Person Re-Identification", arXiv 2412.17239; official code 924973292/FusionReID. The
published parameter counts are those of an encoding unit that the branches share, which is the
default here; the last state of that code has two.

Shapes: B batch, H W image size, C channels of a branch, D fusion dim, h w rows and columns of a
map, N tokens of one branch.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from reid_models.cnn_branch import CnnBranch
from reid_models.explanations import CrossAttention, Explanation, GradCam, branch_rollout
from reid_models.fusion_options import FusionReIDOptions
from reid_models.fusion_plan import Branch, FeaturePlan, plan_features
from reid_models.fusion_units import HeterogeneousTransmissionModule, LocalRefinementUnit, PerBranch
from reid_models.heads import BNNeckHead
from reid_models.model import ReidModel
from reid_models.output import LossTerm, ReidOutput
from reid_models.pooling import GeM, full_precision
from reid_models.side_information import check_indices
from reid_models.vit_branch import VitBranch

__all__ = ["FusionReID", "FusionReIDOptions"]


class FusionReID(ReidModel):
    """The network; see the module's docstring.

    At the published setting and 256x128 pixels: 158.5 M parameters, 29.1 GMAC an image, embedding
    dim 5888. Any image size of at least 32x32 pixels and one patch works; the size is fixed when
    the model is built. With one branch only it is that branch with its head.

    In eval mode only what the embedded features need is computed: no heads, and no branch, unit or
    summary that none of them hangs on.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: tuple[int, int],
        camera_count: int,
        options: FusionReIDOptions,
    ) -> None:
        super().__init__(num_classes, image_size=image_size, camera_count=camera_count)
        self.options = options
        dims: dict[str, int] = {}
        self.cnn: CnnBranch | None = None
        if options.cnn is not None:
            self.cnn = CnnBranch(
                options.cnn, self.image_size, stem=options.stem, last_stride=options.last_stride
            )
            self.gem_global = GeM()
            dims["cnn_global"] = self.cnn.dim
        self.transformer: VitBranch | None = None
        if options.transformer is not None:
            self.transformer = VitBranch(
                options.transformer,
                self.image_size,
                patch_stride=options.patch_stride,
                drop_path=options.drop_path,
                camera_count=camera_count,
                view_count=options.view_count,
                side_information=options.side_information,
            )
            dims["transformer_global"] = self.transformer.dim
        if self.cnn is not None and self.transformer is not None:
            self._add_fusion({"cnn": self.cnn.dim, "transformer": self.transformer.dim})
        dims |= {name: options.fusion_dim for name in options.supervised if name not in dims}
        self.heads = nn.ModuleDict(
            {name: BNNeckHead(dims[name], num_classes) for name in options.supervised}
        )
        self._parts = tuple((name, dims[name]) for name in options.embedded)
        self.embedding_dim = sum(width for _, width in self._parts)
        self.loss_layout = tuple(LossTerm(name) for name in options.supervised)
        self._train_plan = self._plan(options.supervised)
        self._eval_plan = self._plan(options.embedded)

    def _add_fusion(self, branch_dims: dict[Branch, int]) -> None:
        options = self.options
        self.lru = nn.ModuleDict(
            {
                branch: LocalRefinementUnit(dim, options.fusion_dim, kernel=options.lru_kernel)
                for branch, dim in branch_dims.items()
            }
        )
        self.gem = nn.ModuleDict({branch: GeM() for branch in branch_dims})
        self.htms = nn.ModuleList(
            HeterogeneousTransmissionModule(
                options.fusion_dim,
                options.fusion_heads,
                mode=options.htm_mode,
                seu_sharing=options.seu_sharing,
                mfu_sharing=options.mfu_sharing,
            )
            for _ in range(options.htm_depth)
        )

    @property
    def embedding_parts(self) -> tuple[tuple[str, int], ...]:
        """The features of `embed_features`."""
        return self._parts

    def _plan(self, wanted: tuple[str, ...]) -> FeaturePlan:
        return plan_features(wanted, htm_depth=self.options.htm_depth, mode=self.options.htm_mode)

    def load_branch_weights(self, default: Literal["timm"] | None) -> None:
        """Fill the branches from `cnn_weights` and `transformer_weights`, else `default`."""
        cnn_weights = self.options.cnn_weights or default
        if self.cnn is not None and cnn_weights:
            self.cnn.load(cnn_weights)
        transformer_weights = self.options.transformer_weights or default
        if self.transformer is not None and transformer_weights:
            self.transformer.load(transformer_weights)

    def forward(
        self,
        images_BCHW: Tensor,
        cameras_B: Tensor | None = None,
        views_B: Tensor | None = None,
    ) -> ReidOutput:
        """As every model's, with the view of each image as well.

        Args:
            images_BCHW: see `ReidModel.forward`.
            cameras_B: see `ReidModel.forward`.
            views_B: [B] int64, index of the training view (0 .. view_count - 1), -1 where it is
                unknown; None means unknown for all. Ignored with a view_count of 0 or 1.

        Raises:
            ValueError: see `ReidModel.forward`; the same for a view index.
        """
        self._check_images(images_BCHW)
        batch = images_BCHW.shape[0]  # len() would fix the batch size of an exported model
        if self.camera_count < 2:
            cameras_B = None
        if cameras_B is not None:
            check_indices(cameras_B, what="camera", count=self.camera_count, batch=batch)
        if self.options.view_count < 2:
            views_B = None
        if views_B is not None:
            check_indices(views_B, what="view", count=self.options.view_count, batch=batch)
        return self.extract(images_BCHW, cameras_B, views_B)

    def extract(
        self, images_BCHW: Tensor, cameras_B: Tensor | None, views_B: Tensor | None = None
    ) -> ReidOutput:
        plan = self._train_plan if self.training else self._eval_plan
        features = self._features(images_BCHW, cameras_B, views_B, plan)
        embedding_BD = torch.cat([features[name] for name in self.options.embedded], dim=1)
        if not self.training:
            return ReidOutput(embedding_BD)
        logits = {name: head(features[name]) for name, head in self.heads.items()}
        return ReidOutput(embedding_BD, logits=logits, metric_features=features)

    def _features(
        self,
        images_BCHW: Tensor,
        cameras_B: Tensor | None,
        views_B: Tensor | None,
        plan: FeaturePlan,
    ) -> dict[str, Tensor]:
        """The features of the plan, [B, d] each, in at least float32."""
        maps: dict[Branch, Tensor] = {}
        features: dict[str, Tensor] = {}
        if self.cnn is not None and "cnn" in plan.backbones:
            maps["cnn"] = self.cnn(images_BCHW)
            if "cnn_global" in plan.features:
                features["cnn_global"] = self.gem_global(maps["cnn"])
        if self.transformer is not None and "transformer" in plan.backbones:
            vit = self.transformer(images_BCHW, cameras_B, views_B)
            maps["transformer"], features["transformer_global"] = vit.patches, vit.summary

        refined = {branch: self.lru[branch](maps[branch]) for branch in plan.refined}
        tokens = {
            branch: map_BDhw.flatten(2).transpose(1, 2) for branch, map_BDhw in refined.items()
        }
        summaries: PerBranch = {branch: self.gem[branch](refined[branch]) for branch in plan.pooled}
        features |= {f"{branch}_initial": summary for branch, summary in summaries.items()}
        for number, wanted in enumerate(plan.htms):
            summaries = self.htms[number](summaries, tokens, wanted)
        if plan.htms:
            features |= {f"{branch}_fused": summary for branch, summary in summaries.items()}
        return {name: full_precision(features[name]) for name in plan.features}

    def explanations(self) -> tuple[Explanation, ...]:
        """Rollout of the transformer, Grad-CAM of the CNN, and every fusion unit's attention."""
        plan, found = self._eval_plan, list[Explanation]()
        if self.transformer is not None and "transformer" in plan.backbones:
            found.append(branch_rollout(self.transformer))
        if self.cnn is not None and "cnn" in plan.backbones:
            found.append(GradCam(title="Grad-CAM, CNN", layer=self.cnn))
        if self.cnn is None or self.transformer is None or "fuse" not in self.options.htm_mode:
            return tuple(found)
        shared = self.options.mfu_sharing == "shared"
        for number, wanted in enumerate(plan.htms):
            htm = self.htms[number]
            assert isinstance(htm, HeterogeneousTransmissionModule)
            for place, branch in enumerate(wanted):
                from_cnn = branch == "cnn"
                title = "CNN reads transformer" if from_cnn else "transformer reads CNN"
                cross = CrossAttention(
                    title=f"MFU {number + 1}, {title}",
                    unit=htm.mfu["shared" if shared else branch],
                    call=place if shared else 0,
                    grid=self.transformer.grid if from_cnn else self.cnn.grid,
                )
                found.append(cross)
        return tuple(found)
