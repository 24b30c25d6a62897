"""What tests of DICOM objects share."""

from __future__ import annotations

from pathlib import Path

import pytest
from known_heat import SERIES


@pytest.fixture(params=SERIES)
def series(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a series, of each kind."""
    SERIES[request.param](tmp_path / "series")
    return tmp_path / "series"
