"""A DICOMweb archive is asked: time limits, tries again, and errors in words."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from mcmiad_monai.data.cases.names import CaseError
from mcmiad_monai.dicom.credentials import PASSWORD, TOKEN, USER, checked_url, open_session

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: Seconds until a connection, and from one piece of an answer to the next.
TIMEOUT = (10.0, 60.0)
#: How often a question is asked, and seconds before the second time; doubled for each further one.
ATTEMPTS, WAIT = 5, 1.0
#: Answers after which the same question may succeed, beside those from 500.
PASSING = (408, 429)
#: What an answer means.
LOGIN = f"set {TOKEN}, or {USER} and {PASSWORD}, in the environment"
REASONS = {
    401: f"refuses the login (401); {LOGIN}",
    403: f"refuses the login (403); {LOGIN}",
    404: "has nothing there (404); the address of the DICOMweb services is needed",
}


class ArchiveError(OSError):
    """An archive does not answer, or not as DICOMweb says."""


def archive(address: str) -> Any:
    """A client of the archive at an address, with the credentials of the environment.

    Certificates are verified; ``REQUESTS_CA_BUNDLE`` names the file of an authority of one's own.

    Raises
    ------
    AddressError
        If the address cannot be used; see `checked_url` and `open_session`.
    CaseError
        If dicomweb-client is not installed.
    """
    try:
        from dicomweb_client.api import DICOMwebClient
    except ModuleNotFoundError as error:
        raise CaseError(
            f"{error.name} is not installed; a DICOMweb address needs it. Install the extra: "
            "pip install 'mcmiad-monai[dicom]'."
        ) from error
    base = checked_url(address)
    client = DICOMwebClient(base, session=open_session(base), timeout=TIMEOUT)
    client.set_http_retry_params(retry=False)  # it retries neither a cut answer nor a 500
    return client


def patiently(address: str, ask: Callable[[], Answer]) -> Answer:
    """The answer to a question, asked again after errors that pass.

    Parameters
    ----------
    address : str
        For messages.
    ask : callable
        Asks; whatever it had done by an error is done again.

    Raises
    ------
    ArchiveError
        If the last of `ATTEMPTS` fails, or an error does not pass.
    """
    for attempt in count(1):
        try:
            return ask()
        except Exception as error:  # of requests, pydicom, and whatever damaged answers raise
            reason = _reason(error)
            if not _passes(error) or attempt == ATTEMPTS:
                tries = f" ({attempt} tries)" if attempt > 1 else ""
                raise ArchiveError(f"{address} {reason}{tries}.") from error
        wait = WAIT * 2 ** (attempt - 1)
        logger.info("%s %s; asked again in %g s", address, reason, wait)
        time.sleep(wait)
    raise AssertionError("count() does not end")


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _passes(error: Exception) -> bool:
    """Whether the same question may be answered later."""
    import requests

    status = _status(error)
    if status is not None:
        return status >= 500 or status in PASSING
    kinds = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, kinds) and not isinstance(error, requests.exceptions.SSLError)


def _reason(error: Exception) -> str:
    """What went wrong, without the question: it may hold names of patients."""
    import requests

    status = _status(error)
    if status is not None:
        return REASONS.get(status, f"answers {status}")
    kinds = {
        requests.exceptions.SSLError: "has a certificate that is not trusted; name the file of its "
        "authority in REQUESTS_CA_BUNDLE",
        requests.Timeout: f"gave no answer within {TIMEOUT[1]:g} s",
        requests.exceptions.ChunkedEncodingError: "broke off its answer",
        requests.ConnectionError: "cannot be reached; is the address right, and does the server "
        "run?",
    }
    unknown = f"sent what is not understood ({type(error).__name__}); is it a DICOMweb address?"
    return next((text for kind, text in kinds.items() if isinstance(error, kind)), unknown)
