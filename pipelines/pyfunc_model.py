"""The model version as MLflow loads it: encoded images in, embeddings out.

MLflow copies this file into every version and runs it from there ("models from code"), so that
nothing has to be unpickled. The network and the pixel code come from the installed `rayreid`, whose
version is among the requirements: `Embedder` is the one way from images to embeddings.

    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    embeddings = model.predict(pandas.DataFrame({"image": [jpeg_bytes], "camera": ["c1"]}))

Legend: n rows, B batch, H height, W width, D embedding dimension.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

BATCH = 64


class EmbeddingModel(PythonModel):
    """The network of the artifact `model_card` with the weights of the artifact `weights`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network and load its weights, on the GPU if there is one."""
        import torch

        from pipelines.embedder import Embedder, ModelCard

        card = json.loads(Path(context.artifacts["model_card"]).read_text(encoding="utf-8"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.embedder = Embedder(
            ModelCard.from_dict(card), Path(context.artifacts["weights"]), device
        )

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Embeddings of the images: float32 [n, D], each of length 1.

        `model_input` has the column `image` (bytes of a JPEG, PNG or any format that ingest takes)
        and may have `camera`; a camera that training did not know, or none, is the unknown camera.
        Memory beyond input and output is that of 64 images. Raises `ValueError` with the row of a
        picture that is refused.
        """
        embeddings_nD = np.empty((len(model_input), self.embedder.card.embedding_dim), np.float32)
        for start in range(0, len(model_input), BATCH):
            rows = model_input.iloc[start : start + BATCH]
            pixels = [self._pixels(data, start + i) for i, data in enumerate(rows["image"])]
            cameras_B = np.full(len(rows), -1, np.int64)
            if "camera" in rows:
                cameras_B[:] = [self._camera(name) for name in rows["camera"]]
            embeddings_nD[start : start + BATCH] = self.embedder.embed(np.stack(pixels), cameras_B)
        return embeddings_nD

    def _camera(self, name: object) -> int:
        """Index of a camera; a missing value of pandas is the unknown camera."""
        return self.embedder.card.camera_index(name if isinstance(name, str) else None)

    def _pixels(self, data: bytes, row: int) -> np.ndarray:
        """Pixels of one image: uint8 [H, W, 3]."""
        from pipelines.images import ImageError, decode, intake

        card = self.embedder.card
        try:
            return decode(intake(data).data, card.image_size, card.interpolation)
        except ImageError as error:
            raise ValueError(f"row {row}: {error}") from error


set_model(EmbeddingModel())
