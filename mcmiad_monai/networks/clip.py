"""OpenCLIP models from a hub or a file, with errors that say which file is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from mcmiad_monai.networks.hub import cached_file, require_hub
from mcmiad_monai.networks.weights import WeightsError, read_state_dict, require_file


def load_clip(
    model: str, source: str, *, sha256: str | None = None, image_size: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Build an OpenCLIP model.

    Parameters
    ----------
    model : str
        OpenCLIP's name of it, e.g. ``"ViT-B-16"``.
    source : str
        A pretrained tag such as ``"openai"``, the path of a checkpoint, or ``"random"``.
    sha256 : str, optional
        Expected digest of a checkpoint file.
    image_size : int, optional
        Side of the images of the visual tower in pixels, to which OpenCLIP resamples its position
        embeddings; by default that of the model.

    Returns
    -------
    model : nn.Module
        In evaluation mode, on the CPU, in float32.
    provenance : dict
        Source of the weights, with the file's digest where there is one.

    Raises
    ------
    ValueError
        If OpenCLIP does not know the model.
    WeightsError
        If the weights are not available or do not fit.
    """
    import open_clip

    if open_clip.get_model_config(model) is None:
        raise ValueError(
            f"OpenCLIP does not know the model {model!r}; open_clip.list_models() names those it "
            "knows, for example ViT-B-16."
        )
    size = {"force_image_size": image_size}
    if source == "random":
        return open_clip.create_model(model, load_weights=False, **size).eval(), {}
    file = _file(model, source)
    digest = require_file(file, sha256=sha256)
    # Tag and file give the same tensors; only the tag also brings OpenAI's activation function.
    pretrained = source if file != Path(source) else str(file)
    if pretrained == str(file):
        read_state_dict(file)  # OpenCLIP reads some damaged files again, then with the code in them
    try:
        built = open_clip.create_model(model, pretrained=pretrained, **size).eval()
    # OpenCLIP asserts the width of position embeddings
    except (RuntimeError, OSError, KeyError, ValueError, AssertionError) as error:
        problem = str(error).strip()[:300]
        raise WeightsError(f"{file} does not fit OpenCLIP's {model}: {problem}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(
            f"{file} cannot be read as weights ({type(error).__name__}): it is damaged, or no "
            "checkpoint. Bring a safetensors file, or a torch checkpoint that holds tensors only."
        ) from error
    weights = "file" if pretrained == str(file) else f"open_clip: {model}/{source}"
    return built, {"weights": weights, "file": file.name, "file_sha256": digest}


def describe_weights(model: str, source: Mapping[str, Any]) -> str:
    """Source, file and digest of the weights that `load_clip` loaded, in one line.

    Raises
    ------
    WeightsError
        If the weights are random, with which embeddings of prompts have no meaning.
    """
    if not source:
        raise WeightsError(
            f"OpenCLIP's {model} was built with random weights, whose embeddings of prompts have "
            "no meaning; name a pretrained tag or the path of a checkpoint."
        )
    return f"{source['weights']}, {source['file']}, sha256 {source['file_sha256']}"


def tower_config(model: str, clip: Any) -> dict[str, Any]:
    """Describe the visual tower of a CLIP model, so that it can be rebuilt without its name."""
    import open_clip
    from open_clip.model import CLIPVisionCfg
    from open_clip.transformer import QuickGELU

    config = open_clip.get_model_config(model)
    vision = asdict(CLIPVisionCfg(**config["vision_cfg"]))
    preprocess = open_clip.get_model_preprocess_cfg(clip)
    return {
        "vision_cfg": vision,
        "embed_dim": config["embed_dim"],
        "quick_gelu": any(isinstance(layer, QuickGELU) for layer in clip.visual.modules()),
        "mean": list(preprocess["mean"]),
        "std": list(preprocess["std"]),
    }


def _file(model: str, source: str) -> Path:
    """Path of a checkpoint: `source` itself, or the file of a tag, downloaded if needed."""
    from open_clip import pretrained

    if Path(source).suffix or Path(source).is_file():
        require_file(Path(source))
        return Path(source)
    cfg = pretrained.get_pretrained_cfg(model, source)
    if not cfg:
        tags = pretrained.list_pretrained_tags_by_model(model)
        raise WeightsError(
            f"OpenCLIP has no weights {source!r} of {model}; it has {tags}. Choose one of them, or "
            "give the path of a checkpoint."
        )
    try:
        repository, file = _hub_names(cfg)
        if repository and (found := cached_file(repository, file)):
            return found
        if repository:
            require_hub()
        return Path(pretrained.download_pretrained(cfg))
    except (OSError, RuntimeError, ValueError) as error:
        where = _where(cfg)
        quick = cfg.get("quick_gelu") and not model.endswith("quickgelu")
        named = f", naming the model {model}-quickgelu, which has their activation" if quick else ""
        raise WeightsError(
            f"the weights {source!r} of OpenCLIP's {model} could not be downloaded "
            f"({error}). On a machine with a network, download them from {where} "
            f"and give the path of the file instead{named}. For text prompts alone, "
            "`mcmiad train ... --text-prior hashing` needs no weights, and a prior file of "
            "`mcmiad prompts encode` needs none here."
        ) from error


def _hub_names(cfg: dict[str, Any]) -> tuple[str, str]:
    """Repository and file of a tag's weights in the hub; no repository if they are elsewhere."""
    owner, _, rest = str(cfg.get("hf_hub") or "").partition("/")
    repository, _, file = rest.partition("/")
    return f"{owner}/{repository}" if repository else "", file or "open_clip_model.safetensors"


def _where(cfg: dict[str, Any]) -> str:
    """Repository and file that hold the weights of a tag."""
    repository, file = _hub_names(cfg)
    return f"https://huggingface.co/{repository} ({file})" if repository else str(cfg.get("url"))
