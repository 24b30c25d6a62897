"""What the libraries that write the tests' files leave behind is put right."""

from __future__ import annotations

import locale
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def same_letters() -> Iterator[None]:
    """Keep the encoding of files: GDCM's writer sets the locale "C", in which text is ASCII."""
    before = locale.setlocale(locale.LC_CTYPE)
    yield
    locale.setlocale(locale.LC_CTYPE, before)
