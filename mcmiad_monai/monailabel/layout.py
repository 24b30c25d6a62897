"""The folder of an app, for ``monailabel start_server --app``: bundles and four lines of Python."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from mcmiad_monai.errors import BundleError
from mcmiad_monai.files.writing import write_text

MAIN = '''"""MONAI Label app of mcmiad-monai; the code is in mcmiad_monai.monailabel."""

from mcmiad_monai.monailabel.app import MCMIADApp

__all__ = ["MCMIADApp"]
'''
REQUIREMENTS = "mcmiad-monai[label]\n"
README = """# Anomaly heatmaps in MONAI Label

Research software, not a medical device, not for diagnosis.

    monailabel start_server --app {app} --studies STUDIES --host 127.0.0.1

STUDIES is a folder of NIfTI studies or the address of a DICOMweb server. Models: {models}. Each
folder of `model/` is a bundle; copy another one there and restart to add it. Options, each as
`--conf NAME VALUE`: `models` (names, separated by commas) serves only these;
`weights`, `text_prior` and `method` are defaults of training; `skip_trainers true` leaves training
out; `max_upload_mb` (2000) and `max_waiting` (8 inferences) limit what the server takes.

The app has no authentication of its own. Keep `--host 127.0.0.1`, or set `MONAI_LABEL_AUTH_ENABLE`
and `MONAI_LABEL_AUTH_REALM_URI` behind TLS.

On a DICOMweb server, series of the kinds that the models are for are listed; where one model is for
CT, CT alone, unless `MONAI_LABEL_DICOMWEB_SEARCH_FILTER` says otherwise.

- **3D Slicer, OHIF**: "Auto Segmentation". `output_kind` in the options: `mask` (default) shows
  what exceeds the calibrated threshold, `bands` (and `heatmap`, which viewers cannot show) shows 1,
  2 and 4 times as much in three labels.
- **Scripts**: `output_kind` `heatmap` gives the float32 heatmap, 1.0 being the threshold. The JSON
  answer has the scores of the volume and of every slice.
- **Batch**: `POST /batch/infer/MODEL?images=unlabeled` stores the mask as label `original` and the
  heatmap as label `heatmap` of every study.
- **Order of reading**: `POST /scoring/anomaly_score`, then strategy `most_anomalous_first`; studies
  without a score come first.
- **Training**: an empty final label says that a study is healthy (on a DICOMweb server, whose
  labels cannot be empty, the info `{{"normal": true}}` of the image). `POST /train/MODEL` trains on
  these, and leaves out studies in which something was drawn.
  Other settings are those of the bundle's `configs/train.yaml`.
"""

#: Names that can be part of an address.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
#: Files of a bundle that a server does not need.
LEFT_OUT = ("__pycache__", "eval", "mlruns", "best.pt", "last.pt", ".*")


def lay_out_app(directory: str | Path, bundles: Sequence[str | Path]) -> Path:
    """Make the folder of an app from bundles, trained or to be trained there.

    Called again on the same folder it adds bundles; it never overwrites one, which the app may have
    trained.

    Parameters
    ----------
    directory : path
        New, empty, or an app that was laid out before; it is returned.
    bundles : sequence of path
        Folders of bundles; their names become the names of the models.

    Raises
    ------
    BundleError
        If the folder holds something else, or a bundle is none, has a name that cannot be part of
        an address, or is there already.
    """
    app = Path(directory).expanduser().resolve()
    sources = [Path(bundle).expanduser().resolve() for bundle in bundles]
    _check_folder(app)
    _check_bundles(app, sources)
    for source in sources:
        _copy_whole(source, app / "model" / source.name)
    models = sorted(f.parent.parent.name for f in (app / "model").glob("[!.]*/configs/train.yaml"))
    write_text(app / "main.py", MAIN)
    write_text(app / "requirements.txt", REQUIREMENTS)
    write_text(app / "README.md", README.format(app=app.name, models=", ".join(models)))
    return app


def _check_folder(app: Path) -> None:
    main = app / "main.py"
    ours = main.is_file() and "mcmiad_monai.monailabel" in main.read_text(encoding="utf-8")
    if app.exists() and (not app.is_dir() or (any(app.iterdir()) and not ours)):
        raise BundleError(f"{app} is not empty and no app of this project; name a new folder.")


def _check_bundles(app: Path, sources: Sequence[Path]) -> None:
    names = [source.name for source in sources]
    if not names and not (app / "model").is_dir():
        raise BundleError("an app needs at least one bundle; give the folder of a trained bundle.")
    for source, name in zip(sources, names, strict=True):
        if not (source / "configs" / "inference.yaml").is_file():
            raise BundleError(
                f"{source} is no bundle: configs/inference.yaml is missing. Give the folder that "
                "`mcmiad train --out` made."
            )
        if not NAME.fullmatch(name):
            raise BundleError(
                f"the bundle's folder {name!r} names the model, in addresses too; rename it with "
                "letters, digits, '_', '-' and '.' alone."
            )
        if names.count(name) > 1 or (app / "model" / name).exists():
            raise BundleError(
                f"there would be two models {name}; rename the folder of one, or remove "
                f"{app / 'model' / name} to replace it."
            )


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a bundle under a hidden name first, so that the app never sees half of one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex[:8]}.{target.name}")
    try:
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*LEFT_OUT))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
