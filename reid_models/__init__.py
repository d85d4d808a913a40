"""Networks for re-identification: image in, embedding out. Pure torch and timm.

model = create_model("fusion_reid", 751, image_size=(256, 128), camera_count=6)
output = model(images, cameras)
loss, parts = ReidLoss(model.loss_layout)(output, identities)
"""

from reid_models import losses, weights
from reid_models.losses import ReidLoss
from reid_models.model import ReidModel
from reid_models.output import LossTerm, ReidOutput
from reid_models.profile import ModelProfile, profile_model
from reid_models.registry import create_model, list_models, model_options, published_image_size

__all__ = [
    "LossTerm",
    "ModelProfile",
    "ReidLoss",
    "ReidModel",
    "ReidOutput",
    "create_model",
    "list_models",
    "losses",
    "model_options",
    "profile_model",
    "published_image_size",
    "weights",
]
