"""Tensors made with the authors' code: `tests/data/*.npz` with the input x, the weights w of the loss Σ y·w, the output y, the
gradients dx and dparam.*, and the parameters param.*.
"""

from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parents[1] / "data"


def read_golden(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}


def load_parameters(block, tensors, rename):
    """Give the block the golden's parameters and buffers; `rename` maps the authors' name to ours."""
    own = block.state_dict()
    names = {rename(key.removeprefix("param.")): value for key, value in tensors.items() if key.startswith("param.")}
    assert set(names) == set(own)
    block.load_state_dict({name: value.reshape(own[name].shape) for name, value in names.items()})


def assert_same_as_golden(block, tensors, rename):
    """Compare output, gradient of the input and gradients of all parameters, each within 1e-5."""
    x = tensors["x"].clone().requires_grad_()
    y = block(x)
    torch.testing.assert_close(y, tensors["y"].to(y.dtype), rtol=0, atol=1e-5)
    if "w" not in tensors:
        return
    (y * tensors["w"]).sum().backward()
    torch.testing.assert_close(x.grad, tensors["dx"], rtol=0, atol=1e-5)
    gradients = {rename(key[7:]): value for key, value in tensors.items() if key.startswith("dparam.")}
    assert set(gradients) == {name for name, _ in block.named_parameters()}
    for name, parameter in block.named_parameters():
        expected = gradients[name].reshape(parameter.shape)
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
