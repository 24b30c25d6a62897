"""A DICOMweb archive is asked: login, time limits, tries again, and errors in words."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mcmiad_monai.data.cases.names import CaseError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: Environment variables of a login: a token, or a name with its password.
TOKEN, USER, PASSWORD = (f"MCMIAD_DICOMWEB_{name}" for name in ("TOKEN", "USER", "PASSWORD"))
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
    """A client of the archive at an address, with the login of the environment.

    Certificates are verified; ``REQUESTS_CA_BUNDLE`` names the file of an authority of one's own.

    Raises
    ------
    CaseError
        If the address is none, holds a login, or dicomweb-client is not installed.
    """
    try:
        from dicomweb_client.api import DICOMwebClient
    except ModuleNotFoundError as error:
        raise CaseError(
            f"{error.name} is not installed; a DICOMweb address needs it. Install the extra: "
            "pip install 'mcmiad-monai[dicom]'."
        ) from error
    base = checked_address(address)
    client = DICOMwebClient(base, session=open_session(base), timeout=TIMEOUT)
    client.set_http_retry_params(retry=False)  # it retries neither a cut answer nor a 500
    return client


def open_session(address: str) -> Any:
    """A session of HTTP with the login of the environment, for an address that was checked."""
    import requests

    session = requests.Session()
    session.auth = _login(address)
    return session


def checked_address(address: str) -> str:
    """The address without a slash at its end.

    Raises
    ------
    CaseError
        If it has no host, or holds a login, a query or a fragment.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        raise CaseError("a DICOMweb address has no host; it looks like https://host/dicom-web.")
    if parts.username is not None or parts.password is not None:
        raise CaseError(
            f"the address of {host} holds a login, which would be kept with the results. Leave it "
            f"out and set {USER} and {PASSWORD}, or {TOKEN}, in the environment."
        )
    if parts.query or parts.fragment:
        raise CaseError(
            f"the address of {host} has more than a path (? or #); ask by --query KEY=VALUE, and "
            f"give a token in the environment as {TOKEN}."
        )
    return address.rstrip("/")


def _login(base: str) -> Callable[[Any], Any]:
    """Puts the login of the environment into a request; never one of ~/.netrc."""
    from requests.auth import HTTPBasicAuth

    token, user, password = (os.environ.get(name) for name in (TOKEN, USER, PASSWORD))
    if (token or user) and urlsplit(base).scheme.lower() == "http" and not _is_here(base):
        logger.warning("the login goes to %s unencrypted; https is needed to protect it", base)
    if user and not token:
        basic: Callable[[Any], Any] = HTTPBasicAuth(user.encode(), (password or "").encode())
        return basic

    def bearer(request: Any) -> Any:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return bearer


def _is_here(base: str) -> bool:
    return urlsplit(base).hostname in {"localhost", "127.0.0.1", "::1"}


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
