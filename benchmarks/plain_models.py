"""The systems as plain eager PyTorch: the yardstick of `benchmarks.models`.

Each network here copies the weights of one of `reid_models` and does the same arithmetic the way
that the published codes write it: attention as matrix product, softmax and matrix product; query,
key and value by linear layers or convolutions of their own where they are published so; maps with
channels first; every token of every layer; the necks at test as well. Nothing is slowed on purpose:
all is vectorised over the batch, the windows and the heads.

Shapes: B batch, C channels of a map, D token dim, N tokens of one side, h w rows and columns of a
map.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.plain_levit import PlainLEViT
from benchmarks.plain_units import PlainVit, attention, gem, linear, plain_copy, require
from reid_models import ReidModel, ReidOutput
from reid_models.fusion_reid import FusionReID
from reid_models.la_transformer import LATransformer
from reid_models.levit import LEViT
from reid_models.lvit_net import LViTNet


def plain_model(model: ReidModel) -> nn.Module:
    """The plain network with a copy of the model's weights, in the model's mode; called alike.

    Raises:
        ValueError: a model, or an option of one, that is not written out here.
    """
    for kind, plain in (
        (FusionReID, PlainFusionReID),
        (LEViT, PlainLEViT),
        (LATransformer, PlainLATransformer),
        (LViTNet, PlainLViTNet),
    ):
        if isinstance(model, kind):
            return plain(model).train(model.training)
    raise ValueError(f"{type(model).__name__} is not written out plainly")


class PlainFusionReID(nn.Module):
    """FusionReID with both branches; all units run, in eval mode too."""

    def __init__(self, model: FusionReID) -> None:
        super().__init__()
        require(model.options.htm_mode, "encode_fuse")
        require(model.options.embed_features, "all")
        assert model.cnn is not None
        assert model.transformer is not None
        self.cnn = plain_copy(model.cnn.trunk)
        self.transformer = PlainVit(model.transformer)
        self.gem_global, self.gem = plain_copy(model.gem_global), plain_copy(model.gem)
        self.lru = nn.ModuleDict(
            {name: nn.Sequential(*plain_copy(unit)) for name, unit in model.lru.items()}
        )
        self.seu = nn.ModuleList(plain_copy(htm.seu) for htm in model.htms)
        self.mfu = nn.ModuleList(
            nn.ModuleDict({name: PlainMutualFusion(unit) for name, unit in htm.mfu.items()})
            for htm in model.htms
        )
        self.heads = plain_copy(model.heads)

    def forward(self, images_BCHW: Tensor, cameras_B: Tensor | None = None) -> ReidOutput:
        map_cnn = self.cnn.forward_features(images_BCHW)
        class_token_BD, map_vit = self.transformer(images_BCHW, cameras_B)
        refined_cnn, refined_vit = self.lru["cnn"](map_cnn), self.lru["transformer"](map_vit)
        initial_cnn = gem(self.gem["cnn"], refined_cnn)
        initial_vit = gem(self.gem["transformer"], refined_vit)
        tokens_cnn = refined_cnn.flatten(2).transpose(1, 2)
        tokens_vit = refined_vit.flatten(2).transpose(1, 2)
        fused_cnn, fused_vit = initial_cnn, initial_vit
        for seu, mfu in zip(self.seu, self.mfu, strict=True):
            encoded_cnn = self._encode(_of(seu, "cnn"), fused_cnn, tokens_cnn)
            encoded_vit = self._encode(_of(seu, "transformer"), fused_vit, tokens_vit)
            fused_cnn = _of(mfu, "cnn")(encoded_cnn[:, 0], encoded_vit[:, 1:])
            fused_vit = _of(mfu, "transformer")(encoded_vit[:, 0], encoded_cnn[:, 1:])
        features = {
            "cnn_global": gem(self.gem_global, map_cnn),
            "transformer_global": class_token_BD,
            "cnn_initial": initial_cnn,
            "transformer_initial": initial_vit,
            "cnn_fused": fused_cnn,
            "transformer_fused": fused_vit,
        }
        embedding = torch.cat(list(features.values()), dim=1)
        necks = {name: self.heads[name].neck(feature) for name, feature in features.items()}
        if not self.training:
            return ReidOutput(embedding)
        logits = {name: self.heads[name].classifier(neck) for name, neck in necks.items()}
        return ReidOutput(embedding, logits=logits, metric_features=features)

    @staticmethod
    def _encode(seu: Any, summary_BD: Tensor, tokens_BND: Tensor) -> Tensor:
        return seu.norm(seu.block(torch.cat([summary_BD.unsqueeze(1), tokens_BND], dim=1)))


class PlainMutualFusion(nn.Module):
    """FusionReID's MFU."""

    def __init__(self, unit: Any) -> None:
        super().__init__()
        self.unit = plain_copy(unit)

    def forward(self, summary_BD: Tensor, others_BND: Tensor) -> Tensor:
        unit, summary_B1D = self.unit, summary_BD.unsqueeze(1)
        attended_B1D = attention(
            unit.query(unit.norm_query(summary_B1D)),
            unit.key(unit.norm_key(others_BND)),
            unit.value(others_BND),
            unit.heads,
        )
        summary_B1D = summary_B1D + unit.proj(attended_B1D)
        return (summary_B1D + unit.mlp(unit.norm_mlp(summary_B1D))).squeeze(1)


class PlainLATransformer(nn.Module):
    """LA-Transformer and LA-TF++; at test the rows without the class token, as published."""

    def __init__(self, model: LATransformer) -> None:
        super().__init__()
        options = model.options
        for name, value in (
            ("gelt_lambda_on", "local"),
            ("embed_kind", "rows"),
            ("embed_use_cls", False),
        ):
            require(getattr(options, name), value)
        self.on_bottleneck = options.triplet_on == "bottleneck"
        self.on_logits = options.triplet_on == "logits"
        self.factor, self.by_row = options.gelt_lambda, options.heads == "rows"
        self.transformer, self.heads = PlainVit(model.transformer), plain_copy(model.heads)

    def forward(self, images_BCHW: Tensor, cameras_B: Tensor | None = None) -> ReidOutput:
        class_token_BD, map_BDhw = self.transformer(images_BCHW, cameras_B)
        rows = list(map_BDhw.mean(dim=3).unbind(dim=2))
        embedding = torch.cat([functional.normalize(row) / len(rows) ** 0.5 for row in rows], dim=1)
        if not self.training:
            return ReidOutput(embedding)
        gelts = [(class_token_BD + self.factor * row) / (1 + self.factor) for row in rows]
        inputs = gelts if self.by_row else [torch.stack(gelts).mean(dim=0)]
        logits, metric_features = {}, {}
        for (name, head), feature_BD in zip(self.heads.items(), inputs, strict=True):
            bottleneck = head.dropout(head.neck(head.reduction(feature_BD)))
            logits[name] = head.classifier(bottleneck)
            on_logits = logits[name] if self.on_logits else feature_BD
            metric_features[name] = bottleneck if self.on_bottleneck else on_logits
        return ReidOutput(embedding, logits=logits, metric_features=metric_features)


class PlainLViTNet(nn.Module):
    """LViT-Net with DFCF behind the branches; every iteration refines all tokens."""

    def __init__(self, model: LViTNet) -> None:
        super().__init__()
        options = model.options
        for name, value in (
            ("dfcf_placement", "behind"),
            ("dfcf_exchange", "tokens"),
            ("embed_kind", "feature"),
            ("hierarchical", False),
            ("reduction_dim", None),
        ):
            require(getattr(options, name), value)
        self.transformer, self.local = PlainVit(model.transformer), plain_copy(model.local)
        self.lmsf, self.iterations = plain_copy(model.lmsf), options.dfcf_iterations
        self.position_1ND = copy.deepcopy(model.dfcf.position_1ND)
        self.blocks = nn.ModuleList(
            nn.ModuleList(PlainCrossFusionSide(s) for s in (block.local_side, block.global_side))
            for block in model.dfcf.blocks
        )
        self.heads = plain_copy(model.heads)

    def forward(self, images_BCHW: Tensor, cameras_B: Tensor | None = None) -> ReidOutput:
        class_token_BD, map_BDhw = self.transformer(images_BCHW, cameras_B)
        patches_BND = map_BDhw.flatten(2).transpose(1, 2)
        tokens_global = torch.cat([class_token_BD.unsqueeze(1), patches_BND], dim=1)
        tokens_local = self.lmsf(self.local(images_BCHW)).flatten(2).transpose(1, 2)
        if self.position_1ND is not None:
            tokens_local = tokens_local + self.position_1ND
        for number in range(self.iterations):
            local_side, global_side = self.blocks[number % len(self.blocks)]
            normed_local, normed_global = (
                local_side.norm(tokens_local),
                global_side.norm(tokens_global),
            )
            tokens_local, tokens_global = (
                local_side(tokens_local, normed_local, global_side.offer(normed_global)),
                global_side(tokens_global, normed_global, local_side.offer(normed_local)),
            )
        feature = torch.cat([tokens_global[:, 0], tokens_local.mean(dim=1)], dim=1)
        ((name, head),) = self.heads.items()
        neck = head.neck(feature)
        if not self.training:
            return ReidOutput(feature)
        return ReidOutput(
            feature, logits={name: head.classifier(neck)}, metric_features={name: feature}
        )


class PlainCrossFusionSide(nn.Module):
    """One side of DFCF, with query, key and value of their own."""

    def __init__(self, side: Any) -> None:
        super().__init__()
        self.heads, self.dropout = side.heads, nn.Dropout(side.dropout)
        self.norm, self.query = plain_copy(side.norm), plain_copy(side.query)
        weights, biases = side.key_value.weight.chunk(2), side.key_value.bias.chunk(2)
        self.key, self.value = (linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.proj, self.norm_mlp = plain_copy(side.proj), plain_copy(side.norm_mlp)
        self.mlp, self.scales = plain_copy(side.mlp), copy.deepcopy(side.residual_scales)

    def offer(self, normed_BND: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(normed_BND), self.value(normed_BND)

    def forward(
        self, tokens_BND: Tensor, normed_BND: Tensor, offered: tuple[Tensor, Tensor]
    ) -> Tensor:
        query_BND = self.query(normed_BND)
        attended_BND = self.proj(attention(query_BND, *offered, self.heads, self.dropout))
        a, b, c, d = self.scales
        tokens_BND = a * tokens_BND + b * self.dropout(attended_BND)
        return c * tokens_BND + d * self.mlp(self.norm_mlp(tokens_BND))


def _of(units: Any, branch: str) -> Any:
    return units["shared" if "shared" in units else branch]
