"""Every command of ``python -m monai.bundle``, on every bundle, as a process of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_commands import option_words
from torch.nn.utils import parameters_to_vector

from mcmiad_monai.bundle import copy_bundle, open_workflow, shipped_bundles
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.overrides import config_keys, place_method_options

#: Two processes to one: relative difference of the pixel threshold with noise; and without, that of
#: all weights to what training changed in them, of the threshold, and the difference of the metric.
#: AdamW steps as far for a gradient of rounding errors as for a large one, so that no weight by
#: itself is held to its digits.
NOISY, UPDATE, EXACT, ONE_PAIR = 0.1, 1e-2, 1e-3, 2e-3


def config(trained: Any, name: str = "inference") -> Path:
    return trained.root / "configs" / f"{name}.yaml"


def test_verify_metadata_against_the_schema_of_our_own(
    trained: Any, monai_bundle: Any, tmp_path: Path
) -> None:
    schema = shipped_bundles()[trained.name].parent / "metadata_schema.json"
    meta = trained.root / "configs" / "metadata.json"
    done = monai_bundle("verify_metadata", meta_file=meta, filepath=schema)
    assert done.returncode == 0, done.told
    content = json.loads(meta.read_text())
    del content["required_packages_version"]
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    done = monai_bundle("verify_metadata", meta_file=tmp_path / "metadata.json", filepath=schema)
    assert done.returncode != 0
    assert "required_packages_version" in done.told


def test_verify_net_in_out(trained: Any, monai_bundle: Any) -> None:
    done = monai_bundle(
        "verify_net_in_out",
        net_id="network_def",
        meta_file=trained.root / "configs" / "metadata.json",
        config_file=config(trained),
    )
    assert done.returncode == 0, done.told


def test_ckpt_export_equals_pytorch_and_carries_the_thresholds(
    trained: Any, monai_bundle: Any, tmp_path: Path
) -> None:
    model = trained.root / "models" / "model.pt"
    done = monai_bundle(
        "ckpt_export",
        net_id="network_def",
        filepath=tmp_path / "model.ts",
        ckpt_file=model,
        meta_file=trained.root / "configs" / "metadata.json",
        config_file=config(trained),
        use_trace="True",
        input_shape="[2,1,224,224]",
    )
    assert done.returncode == 0, done.told
    told = {"metadata.json": ""}
    exported = torch.jit.load(str(tmp_path / "model.ts"), _extra_files=told)
    detector = load_package(model)
    assert json.loads(told["metadata.json"])["calibration"] == detector.calibration
    for slices in (1, 3):  # not the two of the export
        images = torch.rand(slices, 1, 224, 224)
        with torch.inference_mode():
            torch.testing.assert_close(exported(images), detector(images), rtol=0, atol=1e-4)


def test_onnx_export_with_a_dynamic_batch_equals_pytorch(
    trained: Any, monai_bundle: Any, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    if trained.name not in ("brain_mri_anomaly", "unified_anomaly"):
        pytest.skip("bundles differ in weights alone: once as a function, once as a process")
    model = trained.root / "models" / "model.pt"
    axes = "{'dynamic_axes':{'image':[0]},'input_names':['image'],'output_names':['pred']}"
    done = monai_bundle(
        "onnx_export",
        net_id="network_def",
        filepath=tmp_path / "model.onnx",
        ckpt_file=model,
        meta_file=trained.root / "configs" / "metadata.json",
        config_file=config(trained),
        input_shape="[2,1,224,224]",
        converter_kwargs=axes,
    )
    assert done.returncode == 0, done.told
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    detector = load_package(model)
    for slices in (1, 3):
        images = torch.rand(slices, 1, 224, 224)
        (found,) = session.run(None, {"image": images.numpy()})
        with torch.inference_mode():
            expected = detector(images).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_download_from_a_zip_load_and_create_workflow(
    trained: Any, monai_bundle: Any, tmp_path: Path
) -> None:
    from monai.bundle import create_workflow, load

    packed = tmp_path / "packed" / trained.name
    shutil.copytree(
        trained.root, packed, ignore=shutil.ignore_patterns("eval", "best.pt", "last.pt", "epoch*")
    )
    archive = shutil.make_archive(str(tmp_path / "a"), "zip", packed.parent, trained.name)
    folder = tmp_path / "downloaded"
    done = monai_bundle("download", name=trained.name, url=f"file://{archive}", bundle_dir=folder)
    assert done.returncode == 0, done.told
    root = folder / trained.name
    detector = load_package(root / "models" / "model.pt")
    # `load` gives the state of a package; into a network of the same form it fits
    content = load(
        trained.name, model_file="models/model.pt", bundle_dir=str(folder), source="github"
    )
    detector.load_state_dict(content)
    workflow = create_workflow(
        config_file=str(root / "configs" / "inference.yaml"),
        workflow_type="inference",
        bundle_root=str(root),
        **trained.options(output_dir=str(tmp_path / "out")),
    )
    workflow.run()
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["failed"] == {}


@pytest.fixture
def run_in_two(
    request: pytest.FixtureRequest, forked: Any, monai_process: Any, tmp_path: Path
) -> Any:
    """A command of MONAI in two processes: for one bundle under torchrun, for others as it would.

    Processes of torchrun import MONAI, which takes longer than the training.
    """

    def torchrun(command: str, **options: Any) -> None:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        done = monai_process(command, launcher=launcher, **options)
        assert done.returncode == 0, done.told[-3000:]

    def directly(command: str, **options: Any) -> None:
        forked.run_group(["-m", "monai.bundle", command, *option_words(options)], tmp_path, 2)

    return torchrun if "brain_mri" in request.node.name else directly


@pytest.mark.parametrize("noise", [False, True], ids=["without noise", "with noise"])
def test_two_processes_train_what_one_does(
    trained: Any, small: Any, run_in_two: Any, tmp_path: Path, noise: bool
) -> None:
    """Noise is each process's own, so that with it only the figures agree and not the weights."""
    if noise and trained.name != "brain_mri_anomaly":
        pytest.skip("noise does not depend on the modality: once is enough")
    options = trained.options(**small(trained.name)) | {"max_epochs": 1}
    if not noise:
        # the balance of the experts is that of a batch, which is shared
        quiet = {"jitter_scale": 0.0, "dropout": 0.0, "balance_weight": 0.0}
        options |= {f"method#{name}": value for name, value in quiet.items()}
    one = copy_bundle(trained.name, tmp_path / "one")
    workflow = open_workflow(one, "train", options)
    network = workflow.parser.get_parsed_content("network_def")
    untrained = parameters_to_vector(network.parameters()).clone()
    workflow.run()
    two = copy_bundle(trained.name, tmp_path / "two")
    options = place_method_options(options, config_keys([two / "configs/train.yaml"]))
    run_in_two(
        "run",
        config_file=f"['{two}/configs/train.yaml','{two}/configs/multi_gpu_train.yaml']",
        **{key: value for key, value in options.items() if key != "device"},
    )
    single, double = (
        torch.load(root / "models" / "last.pt", weights_only=True) for root in (one, two)
    )
    assert double["iteration"] == single["iteration"]
    if not noise:
        assert double["best_metric"] == pytest.approx(single["best_metric"], abs=ONE_PAIR)
        names = [name for name, _ in network.named_parameters()]
        alone, shared = (
            parameters_to_vector([content["network"][name] for name in names])
            for content in (single, double)
        )
        assert (shared - alone).norm() <= UPDATE * (alone - untrained).norm()
    found, expected = (
        load_package(root / "models" / "model.pt").calibration["pixel_threshold"]
        for root in (two, one)
    )
    assert found == pytest.approx(expected, rel=NOISY if noise else EXACT)


def test_multi_gpu_configuration_started_alone_says_how_to_start_it(
    train: Any, monai_process: Any
) -> None:
    trained = train("brain_mri_anomaly")
    root = trained.root
    done = monai_process(
        "run",
        config_file=f"['{root}/configs/train.yaml','{root}/configs/multi_gpu_train.yaml']",
        dataset_dir=trained.source,
    )
    assert done.returncode != 0
    assert "torchrun --standalone" in done.told
