"""TODO"""

from pipelines.datasets.drawn.config import DrawnConfig, plan
from pipelines.datasets.drawn.writer import draw_dataset, draw_image, encode_image

__all__ = ["DrawnConfig", "draw_dataset", "draw_image", "encode_image", "plan"]
