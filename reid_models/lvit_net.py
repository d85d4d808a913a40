"""LViT-Net, reconstructed: local convolutions and a vision transformer that refine each other.

THE PAPER'S TEXT AND CODE WERE NOT TO BE HAD. Two second-hand summaries were; whatever they are
silent on is taken from the nearest published network. Nothing here could be compared with the
paper's ablations, and its results are targets, not claims. Every statement below has a tag:

    [CARD]  said by both or one of the summaries, which may be wrong
    [MEM]   recalled from the abstract, confirmed by nothing: a hint
    [PUB]   read in the code of another published network
    [REC]   reconstructed here: a guess; an option wherever another guess is as plausible

Source: Hu, Liu, Wang, Wu and Tang, Visual Computing for Industry, Biomedicine, and Art, 2025,
doi 10.1186/s42492-025-00190-1, on person re-identification in domains unseen in training.

What is known
    [CARD]  224x224 pixels; two parallel encoders; output = DFCF(LMSF(local), global); a linear
            classifier on the fused features.
    [CARD]  Local branch: 4x4 convolution, GroupNorm, then LMSF, local multi-scale feature fusion.
            Global branch: patches through a vision transformer.
    [CARD]  DFCF, dual feature cross fusion, is iterated; 4 times is best.
    [CARD]  60 epochs, batches of 64, weight decay 1e-4, learning rate "0.001 (initially 0, linearly
            increases to 0.01 over 10 epochs)". Optimiser and losses are not named.
    [CARD]  Market-1501, DukeMTMC-reID, MSMT17 and CUHK03-NP; compared with PAT. R1 / mAP: 68.2 /
            49.1 from Market-1501 to DukeMTMC-reID, 71.4 / 45.7 back, 79.0 / 49.6 from MSMT17 to
            Market-1501; with several sources 3.1 / 1.7 above PAT, on a target that is not named.
    [CARD]  Not for real time. Nothing is said of parameters or operations.
    [MEM]   Parallel hierarchical encoders; LMSF fuses local units of several scales; DFCF sits in
            the global branch and lets local and global features refine each other.
    Nothing speaks for dynamic convolution or the like: it has no option here.

What is reconstructed, all of it [REC]
    Global branch   ViT-B/16; all tokens behind the last layer norm.
    Local branch    Four stages at strides 4 to 32 as in HiFuse and ConvNeXt, GroupNorm in the place
                    of LayerNorm. Between stages GroupNorm and a 2x2 convolution of stride 2.
    LMSF            The stages' maps at stride 16 (pooled, or doubled bilinearly), projected to D
                    (1x1, GroupNorm); softmax over the scales for each channel, of their pooled sum,
                    as in selective-kernel networks; depth-wise 3x3, 5x5 and 7x7, summed,
                    GroupNorm, GELU, 1x1, with a residual path.
    DFCF            The iterated cross-attention of ICAFusion: one block, shared by the iterations,
                    in which either side asks the other side's tokens as they came in; eight learned
                    scalars, at first 1, weigh the residual sums; dropout 0.1. A learned position
                    table, at first 0, joins the local tokens once; without iterations, where it
                    would only shift every feature alike, there is none.
    Feature         Class token and mean of the local tokens, 2 D wide; BNNeck; linear classifier
                    without bias. Label-smoothed cross entropy and soft-margin batch-hard triplet
                    loss before the neck, 1:1, as in PAT [PUB]; searched before the neck, as there.
    Learning rate   From 0 to 0.01 over ten epochs, which is 0.001 in the first, then a cosine to 0;
                    by SGD with momentum 0.9 as in PAT [PUB]. The other reading is PAT's own rate,
                    which rises to 0.001 in five epochs.
    Weights         Normal around 0 with standard deviation 0.02 in convolutions and linear layers
                    outside the transformer; stochastic depth in both branches, 0.1 as in PAT [PUB].

Other readings, options off by default, each [REC]
    dfcf_placement="levels"         Four iterations, iteration i between stage i of the local branch
                                    and what the first i quarters of the transformer's blocks give
                                    (blocks 3, 6, 9, 12), as Conformer couples its branches. The
                                    refined tokens go on in the transformer; LMSF gathers the
                                    refined scales. Fits [MEM], and 4 = number of stages; the
                                    formula of the card, with DFCF outside both encoders, does not.
    share_iterations=False          A block of its own for each iteration.
    dfcf_exchange="class_tokens"    As CrossViT: the sides meet in their class tokens alone.
    transformer="swin_..."          A hierarchical global branch, as HiFuse's; the mean token
                                    stands for the class token.
    reduction_dim, embed_kind       A narrower feature; search behind the neck.

The last iteration does not compute the global patch tokens: nothing reads them. At the default
setting and 224x224 pixels this saves 1.2 of 30.0 GMAC an image.

Shapes: B batch, H W image size, D token dim, h w rows and columns of the grid at stride 16, L local
tokens (h * w), G global tokens with the class token in front, F feature dim.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from reid_models.explanations import CrossAttention, Explanation, GradCam, branch_rollout
from reid_models.heads import BNNeckHead
from reid_models.lvit_global import SteppedVit, SwinBranch
from reid_models.lvit_options import LViTNetOptions
from reid_models.lvit_units import (
    LEVELS,
    DualFeatureCrossFusion,
    LocalEncoder,
    LocalMultiScaleFusion,
)
from reid_models.model import ReidModel
from reid_models.output import LossTerm, ReidOutput
from reid_models.pooling import full_precision
from reid_models.vit_branch import VitFeatures

__all__ = ["LViTNet", "LViTNetOptions"]

_HEAD = "fused"
_COARSEST_STRIDE = 32


class LViTNet(ReidModel):
    """The network; see the module's docstring.

    At the default setting and 224x224 pixels: 105.2 M parameters without the classifier, 28.7 GMAC
    an image, embedding dim 1536. Height and width of the image are multiples of 32.
    """

    published_image_size = (224, 224)

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: tuple[int, int],
        camera_count: int,
        options: LViTNetOptions,
    ) -> None:
        super().__init__(num_classes, image_size=image_size, camera_count=camera_count)
        _check_image_size(self.image_size)
        self.options = options
        self.transformer = self._new_transformer()
        dim = self.transformer.dim
        _check_dim(dim, options)
        self.local = LocalEncoder(
            options.local_widths,
            blocks=options.local_blocks,
            groups=options.norm_groups,
            drop_path=options.drop_path,
        )
        self.lmsf = LocalMultiScaleFusion(
            options.local_widths,
            dim,
            kernels=options.lmsf_kernels,
            reduction=options.lmsf_reduction,
            groups=options.norm_groups,
        )
        self.dfcf = DualFeatureCrossFusion(
            dim,
            self.image_size[0] // 16 * (self.image_size[1] // 16),
            iterations=options.dfcf_iterations,
            shared=options.share_iterations,
            class_tokens_only=options.dfcf_exchange == "class_tokens",
            heads=options.dfcf_heads,
            mlp_ratio=options.dfcf_mlp_ratio,
            dropout=options.dfcf_dropout,
        )
        self.embedding_dim = options.reduction_dim or 2 * dim
        # The loss and the neck feel no shift of all features alike: no bias.
        self.reduction = (
            nn.Linear(2 * dim, options.reduction_dim, bias=False) if options.reduction_dim else None
        )
        for unit in (self.local, self.lmsf, self.dfcf, self.reduction):
            if unit is not None:
                unit.apply(_initialise)
        self.heads = nn.ModuleDict({_HEAD: BNNeckHead(self.embedding_dim, num_classes)})
        self.loss_layout = (LossTerm(_HEAD),)

    def _new_transformer(self) -> SteppedVit | SwinBranch:
        options = self.options
        if options.hierarchical:
            return SwinBranch(options.transformer, self.image_size, drop_path=options.drop_path)
        return SteppedVit(
            options.transformer,
            self.image_size,
            patch_stride=options.patch_stride,
            drop_path=options.drop_path,
            camera_count=self.camera_count,
            side_information=options.side_information,
        )

    @property
    def embedding_parts(self) -> tuple[tuple[str, int], ...]:
        """The global and the local half, unless they were reduced together."""
        if self.options.reduction_dim:
            return super().embedding_parts
        half = self.embedding_dim // 2
        return (("global", half), ("local", half))

    def load_branch_weights(self, default: Literal["timm"] | None) -> None:
        """Fill the global branch from `transformer_weights`, else from `default`."""
        weights = self.options.transformer_weights or default
        if weights:
            self.transformer.load(weights)

    def extract(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> ReidOutput:
        if self.options.dfcf_placement == "levels":
            local_BD, global_BD = self._fused_by_level(images_BCHW, cameras_B)
        else:
            local_BD, global_BD = self._fused_behind(images_BCHW, cameras_B)
        feature_BF = full_precision(torch.cat([global_BD, local_BD], dim=1))
        if self.reduction is not None:
            feature_BF = full_precision(self.reduction(feature_BF))
        if not self.training and self.options.embed_kind == "feature":
            return ReidOutput(feature_BF)
        head = self.heads[_HEAD]
        assert isinstance(head, BNNeckHead)
        neck_BF = full_precision(head.embed(feature_BF))
        embedding_BF = feature_BF if self.options.embed_kind == "feature" else neck_BF
        if not self.training:
            return ReidOutput(embedding_BF)
        return ReidOutput(
            embedding_BF,
            logits={_HEAD: head.classify(neck_BF)},
            metric_features={_HEAD: feature_BF},
        )

    def _fused_behind(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """DFCF(LMSF(local), global): summaries of the local and the global side, [B, D] each."""
        global_BGD = _tokens(self.transformer(images_BCHW, cameras_B))
        return self.dfcf(self.lmsf(self.local(images_BCHW)), global_BGD)

    def _fused_by_level(
        self, images_BCHW: Tensor, cameras_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """LMSF over the scales that DFCF refined one by one; summaries as of `_fused_behind`."""
        vit = self.transformer
        assert isinstance(vit, SteppedVit)
        global_BGD = vit.embed(images_BCHW, cameras_B)
        refined: list[Tensor] = []
        for level, scale_BDhw in enumerate(self.lmsf.align(self.local(images_BCHW))):
            local_BLD, global_BGD = self.dfcf.iterate(
                level,
                self.dfcf.local_tokens(scale_BDhw),
                vit.run_part(global_BGD, level, LEVELS),
            )
            refined.append(local_BLD.transpose(1, 2).unflatten(2, scale_BDhw.shape[2:]))
        return self.lmsf.fuse(refined).mean(dim=(-2, -1)), vit.trunk.norm(global_BGD[:, 0])

    def explanations(self) -> tuple[Explanation, ...]:
        """Rollout of a plain transformer, Grad-CAM of the local branch, and the last DFCF."""
        vit, behind = self.transformer, self.options.dfcf_placement == "behind"
        found: list[Explanation] = []
        if isinstance(vit, SteppedVit):
            found.append(branch_rollout(vit, title="Attention rollout, global branch"))
        local_map = self.lmsf if behind else self.local.stages[-1]
        found.append(GradCam(title="Grad-CAM, local branch", layer=local_map))
        if not self.options.dfcf_iterations:
            return tuple(found)
        block = self.dfcf.blocks[-1]  # an iteration asks for the local side, then for the global
        if isinstance(vit, SteppedVit):
            local_reads = CrossAttention(
                title="Last DFCF, local reads global",
                unit=block,
                call=-2,
                prefix_tokens=1 if behind else vit.trunk.num_prefix_tokens,
                grid=vit.grid,
            )
            found.append(local_reads)
        global_reads = CrossAttention(
            title="Last DFCF, class token reads local",
            unit=block,
            call=-1,
            prefix_tokens=int(self.dfcf.class_tokens_only),
            grid=(self.image_size[0] // 16, self.image_size[1] // 16),
        )
        return (*found, global_reads)


def _tokens(features: VitFeatures) -> Tensor:
    """Class token and patches as one sequence [B, G, D]."""
    patches_BND = features.patches.flatten(2).transpose(1, 2)
    return torch.cat([features.summary.unsqueeze(1), patches_BND], dim=1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_image_size(image_size: tuple[int, int]) -> None:
    unit = _COARSEST_STRIDE
    if any(pixels % unit for pixels in image_size):
        nearest = tuple(max(1, round(pixels / unit)) * unit for pixels in image_size)
        raise ValueError(
            f"image_size must be a multiple of {unit} in both directions, at least {unit}x{unit}; "
            f"got {image_size}, the nearest is {nearest}"
        )


def _check_dim(dim: int, options: LViTNetOptions) -> None:
    for name in ("norm_groups", "lmsf_reduction", "dfcf_heads"):
        if dim % getattr(options, name):
            raise ValueError(
                f"{name} must divide the dim {dim} of transformer={options.transformer!r}, "
                f"got {getattr(options, name)}"
            )
