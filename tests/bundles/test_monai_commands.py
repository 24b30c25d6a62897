"""What MONAI's commands and the checks of its model zoo do with a trained bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forked_commands import option_words
from monai.bundle import ConfigWorkflow, ckpt_export, load, verify_metadata, verify_net_in_out
from small_bundles import without_scores
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from mcmiad_monai.bundle import copy_bundle, open_workflow, shipped_bundles
from mcmiad_monai.networks.package import load_package
from mcmiad_monai.overrides import config_keys, place_method_options

#: Two processes to one: relative difference of the pixel threshold with noise; and without, that of
#: all weights to what training changed in them, of the threshold, and the difference of the metric.
#: AdamW steps as far for a gradient of rounding errors as for a large one, so that no weight by
#: itself is held to its digits.
NOISY, UPDATE, EXACT, ONE_PAIR = 0.1, 1e-2, 1e-3, 2e-3


def smooth_images(count: int, channels: int) -> torch.Tensor:
    coarse = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(count))
    return functional.interpolate(coarse, (224, 224), mode="bilinear")


def assert_same_heatmaps(found: Any, model: Path) -> None:
    """Of one slice and of three; exports are made with two."""
    detector = load_package(model)
    for count in (1, 3):
        images = smooth_images(count, detector.channels)
        with torch.inference_mode():
            torch.testing.assert_close(found(images), detector(images), rtol=0, atol=1e-4)


def test_metadata_is_valid_by_the_schema_of_our_own(brain: Any, tmp_path: Path) -> None:
    schema = str(shipped_bundles()[brain.name].parent / "metadata_schema.json")
    meta = brain.root / "configs" / "metadata.json"
    content = json.loads(meta.read_text())
    assert content["version"] in content["changelog"]
    assert yaml.safe_load((brain.root / "large_files.yml").read_text()) == {"large_files": []}
    verify_metadata(meta_file=str(meta), filepath=schema)
    del content["required_packages_version"]
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="required_packages_version"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=schema)


def test_network_has_the_shapes_that_the_metadata_names(brain: Any) -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(brain.root / "configs" / "metadata.json"),
        config_file=str(brain.config()),
        bundle_root=str(brain.root),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},  # as the model zoo calls it
        {"key_in_ckpt": "model"},
        {"use_trace": True, "input_shape": [2, 3, 224, 224]},
    ],
    ids=["scripted", "with a key", "traced"],
)
def test_ckpt_export_equals_pytorch(brain: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(brain.model),
        meta_file=str(brain.root / "configs" / "metadata.json"),
        config_file=str(brain.config()),
        bundle_root=str(brain.root),
        **options,
    )
    extra = {"metadata.json": ""}
    exported = torch.jit.load(str(tmp_path / "model.ts"), _extra_files=extra)
    calibration = load_package(brain.model).calibration
    assert json.loads(extra["metadata.json"])["calibration"] == without_scores(calibration)
    assert_same_heatmaps(exported, brain.model)


def test_exports_work_from_any_folder_as_commands(
    brain: Any, monai_process: Any, tmp_path: Path
) -> None:
    common = {
        "net_id": "network_def",
        "ckpt_file": brain.model,
        "meta_file": brain.root / "configs" / "metadata.json",
        "config_file": brain.config(),
    }
    done = monai_process("ckpt_export", filepath=tmp_path / "model.ts", **common)
    assert done.returncode == 0, done.told
    assert_same_heatmaps(torch.jit.load(str(tmp_path / "model.ts")), brain.model)
    runtime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    axes = "{'dynamic_axes':{'image':[0]},'input_names':['image'],'output_names':['pred']}"
    done = monai_process(
        "onnx_export",
        filepath=tmp_path / "model.onnx",
        input_shape="[2,3,224,224]",
        converter_kwargs=axes,
        **common,
    )
    assert done.returncode == 0, done.told
    session = runtime.InferenceSession(tmp_path / "model.onnx")

    def heatmaps(images: torch.Tensor) -> torch.Tensor:
        found: np.ndarray = session.run(None, {"image": images.numpy()})[0]
        return torch.from_numpy(found)

    assert_same_heatmaps(heatmaps, brain.model)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("train", ["train"]),
        ("inference", ["inference"]),
        ("train", ["train", "evaluate"]),
    ],
    ids=["train", "inference", "evaluate"],
)
def test_configurations_have_all_properties_that_monai_asks_for(
    brain: Any, kind: str, names: list[str]
) -> None:
    options = brain.options() if kind == "inference" else brain.small()
    files = [str(brain.config(name)) for name in names]
    workflow = ConfigWorkflow(
        workflow_type=kind,
        config_file=files,
        logging_file=str(brain.root / "configs" / "logging.conf"),
        meta_file=str(brain.root / "configs" / "metadata.json"),
        bundle_root=str(brain.root),
        **place_method_options(options, config_keys(files)),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_download_from_a_zip_and_load(brain: Any, monai_process: Any, tmp_path: Path) -> None:
    packed = tmp_path / "packed" / brain.name
    left_out = shutil.ignore_patterns("eval", "best.pt", "last.pt", "epoch*")
    shutil.copytree(brain.root, packed, ignore=left_out)
    archive = shutil.make_archive(str(tmp_path / "a"), "zip", packed.parent, brain.name)
    folder = tmp_path / "downloaded"
    done = monai_process("download", name=brain.name, url=f"file://{archive}", bundle_dir=folder)
    assert done.returncode == 0, done.told
    root = folder / brain.name
    assert_same_heatmaps(load_package(root / "models" / "model.pt"), brain.model)
    where = {"bundle_dir": str(folder), "source": "github", "device": "cpu"}
    options = brain.options(output_dir=str(tmp_path / "out"))
    network = open_workflow(root, "inference", options).parser.get_parsed_content("network_def")
    calibration = network.calibration
    # the state dict alone, and copied into a network
    network.load_state_dict(load(brain.name, **where), strict=True)
    torch.nn.init.zeros_(network.head.project.weight)
    network.calibration = {}
    loaded = load(brain.name, model=network, **where)
    assert loaded.calibration == calibration
    assert_same_heatmaps(loaded, brain.model)
    open_workflow(root, "inference", options).run()
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["failed"] == {}


@pytest.mark.parametrize(
    ("name", "noise"),
    [("brain_mri_anomaly", True), ("unified_anomaly", False)],
    ids=["torchrun, with noise", "unified, without noise"],
)
def test_two_processes_train_what_one_does(
    train: Any, forked: Any, monai_process: Any, tmp_path: Path, *, name: str, noise: bool
) -> None:
    """Noise is each process's own, so that with it only the figures agree and not the weights."""
    trained = train(name)
    options = trained.small(max_epochs=1)
    if not noise:
        # the balance of the experts is that of a batch, which is shared
        options |= {"jitter_scale": 0.0, "dropout": 0.0, "balance_weight": 0.0}
    one = copy_bundle(name, tmp_path / "one")
    options = place_method_options(options, config_keys([one / "configs/train.yaml"]))
    workflow = open_workflow(one, "train", options)
    network = workflow.parser.get_parsed_content("network_def")
    untrained = parameters_to_vector(network.parameters()).clone()
    workflow.run()
    two = copy_bundle(name, tmp_path / "two")
    given = {key: value for key, value in options.items() if key != "device"}
    given["config_file"] = f"['{two}/configs/train.yaml','{two}/configs/multi_gpu_train.yaml']"
    if noise:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        done = monai_process("run", launcher=launcher, **given)
        assert done.returncode == 0, done.told[-3000:]
    else:  # as torchrun would, whose processes import MONAI for longer than they train
        forked.run_group(["-m", "monai.bundle", "run", *option_words(given)], tmp_path, 2)
    single, double = (
        torch.load(root / "models" / "last.pt", weights_only=True) for root in (one, two)
    )
    assert double["iteration"] == single["iteration"]
    if not noise:
        assert double["best_metric"] == pytest.approx(single["best_metric"], abs=ONE_PAIR)
        names = [parameter for parameter, _ in network.named_parameters()]
        alone, shared = (
            parameters_to_vector([content["network"][parameter] for parameter in names])
            for content in (single, double)
        )
        assert (shared - alone).norm() <= UPDATE * (alone - untrained).norm()
    found, expected = (
        load_package(root / "models" / "model.pt").calibration["pixel_threshold"]
        for root in (two, one)
    )
    assert found == pytest.approx(expected, rel=NOISY if noise else EXACT)


def test_two_processes_build_the_memory_of_one(forked: Any, brain: Any, tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        root = copy_bundle("brain_mri_anomaly", tmp_path / str(processes))
        options = {**brain.small(), "method#parts": "memory"}
        if processes == 1:
            given = place_method_options(options, config_keys([root / "configs/train.yaml"]))
            open_workflow(root, "train", given).run()
        else:
            del options["device"]
            keys = config_keys([root / "configs/train.yaml"])
            given = place_method_options(options, keys)
            files = [f"{root}/configs/{name}.yaml" for name in ("train", "multi_gpu_train")]
            given["config_file"] = str(files)
            forked.run_group(["-m", "monai.bundle", "run", *option_words(given)], tmp_path, 2)
        assert not (root / "models" / "last.pt").exists()
        found.append(load_package(root / "models" / "model.pt"))
    one, two = found
    assert two.head is None
    assert two.score.config == one.score.config
    assert list(two.memories) == list(one.memories)
    for name, memory in two.memories.items():
        assert torch.equal(memory.tokens, one.memories[name].tokens)
    assert two.calibration["pixel_threshold"] == pytest.approx(one.calibration["pixel_threshold"])


def test_multi_gpu_configuration_started_alone_says_how_to_start_it(
    brain: Any, monai_process: Any
) -> None:
    files = f"['{brain.config('train')}','{brain.config('multi_gpu_train')}']"
    done = monai_process("run", config_file=files, dataset_dir=brain.source)
    assert done.returncode != 0
    assert "torchrun --standalone" in done.told
