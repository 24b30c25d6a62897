"""Small random CLIP models, known to OpenCLIP by name and saved as checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

TOWERS = {
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-clip": {"embed_dim": 24, **TOWERS},
    "tiny-custom": {"embed_dim": 24, "custom_text": True, **TOWERS},
    "tiny-resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TOWERS["text_cfg"],
    },
}
Paths = dict[str, Path]


@contextmanager
def small_clips(root: Path) -> Iterator[Paths]:
    """Checkpoints by the name of their model, which OpenCLIP knows until the end."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_MODEL_CONFIGS", "_MODEL_CONFIG_PATHS"):
            patch.setattr(open_clip.factory, name, getattr(open_clip.factory, name).copy())
        for name, config in CONFIGS.items():
            (root / f"{name}.json").write_text(json.dumps(config))
            open_clip.add_model_config(root / f"{name}.json")
            torch.manual_seed(0)
            built = open_clip.create_model(name, load_weights=False)
            torch.save(built.state_dict(), root / f"{name}.pt")
        yield {name: root / f"{name}.pt" for name in CONFIGS}
