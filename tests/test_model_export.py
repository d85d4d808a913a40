"""Every architecture is captured whole: compiled, exported and in ONNX it is the same function.

The exported function takes batches of any size. Of `torch.compile` the capture and the
differentiation are tested for every architecture; the code generator behind them, for two.
"""

import copy
import functools
import shutil

import onnxruntime
import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from reid_models import ReidModel, list_models
from reid_models.levit_units import LEViTBlock
from tests.small_models import SMALL, cameras, images, loss_of, settled_model

# LEViT-L is LEViT-S with other widths. What is exported here is tested in one process, for ONNX
# takes it up again.
every_architecture = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xdist_group(f"export {name}"))
        for name in list_models()
        if name != "levit_l"
    ],
)

BATCHES = (1, 3, 7)


class Embedding(nn.Module):
    """Images and cameras to embeddings: tensors only, as the exporters want it."""

    def __init__(self, model: ReidModel) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, images: Tensor, cameras: Tensor) -> Tensor:
        return self.model(images, cameras).embedding


def shallow_model(name: str, *, row: int = 2, **options: object) -> ReidModel:
    """In eval mode, with so many of each row of equal blocks: more only cost time."""
    model = settled_model(name, **options)
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, nn.Sequential) and isinstance(child[0], Block | LEViTBlock):
                setattr(parent, child_name, child[:row])
    return model


@functools.cache
def exported(name: str) -> tuple[Embedding, ExportedProgram]:
    embedding = Embedding(shallow_model(name)).eval()
    shapes = ({0: Dim("batch")},) * 2
    example = (images(2), cameras(2))
    return embedding, torch.export.export(embedding, example, dynamic_shapes=shapes)


@every_architecture
@torch.no_grad()
def test_exported_program_agrees(name: str) -> None:
    embedding, program = exported(name)
    module = program.module()
    for batch in BATCHES:
        arguments = (images(batch, seed=batch), cameras(batch))
        torch.testing.assert_close(module(*arguments), embedding(*arguments), rtol=1e-5, atol=1e-5)


@every_architecture
@torch.no_grad()
def test_onnx_agrees(name: str) -> None:
    embedding, program = exported(name)
    # onnxruntime optimises by itself
    onnx_program = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    session = onnxruntime.InferenceSession(
        onnx_program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for batch in BATCHES:
        arguments = {"images": images(batch, seed=batch), "cameras": cameras(batch)}
        feed = {i.name: arguments[i.name].numpy() for i in session.get_inputs()}
        (result,) = session.run(None, feed)
        torch.testing.assert_close(
            torch.from_numpy(result), embedding(**arguments), rtol=1e-4, atol=1e-4
        )


@every_architecture
def test_compiled_training_step_agrees(name: str) -> None:
    model = shallow_model(name, **SMALL[name].no_chance).train()
    plain = copy.deepcopy(model)
    loss = loss_of(compiled(model, "aot_eager"), images(8))
    expected_loss = loss_of(plain, images(8))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected_loss.backward()
    for (key, parameter), expected in zip(
        model.named_parameters(), plain.parameters(), strict=True
    ):
        torch.testing.assert_close(
            parameter.grad,
            expected.grad,
            rtol=1e-3,
            atol=1e-4,
            msg=lambda m, key=key: f"{key}: {m}",
        )
    for (key, buffer), expected in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=lambda m, key=key: f"{key}: {m}")


@every_architecture
@torch.no_grad()
def test_compiled_embedding_agrees(name: str) -> None:
    check_compiled_embedding(shallow_model(name), "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch's code generator needs g++")
@pytest.mark.parametrize("name", ["fusion_reid", "levit_s"])
@torch.no_grad()
def test_generated_code_agrees(name: str) -> None:
    check_compiled_embedding(shallow_model(name, row=1), "inductor")


def check_compiled_embedding(model: ReidModel, backend: str) -> None:
    torch.testing.assert_close(
        compiled(model, backend)(images(3), cameras(3)).embedding,
        model(images(3), cameras(3)).embedding,
        rtol=1e-4,
        atol=1e-4,
    )


def compiled(model: ReidModel, backend: str) -> ReidModel:
    """With `fullgraph` a break in the graph is an error."""
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend=backend)
