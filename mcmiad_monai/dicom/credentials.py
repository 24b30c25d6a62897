"""What opens an archive: credentials come from the environment alone, never from a command line."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

TOKEN, USER, PASSWORD = "MCMIAD_DICOMWEB_TOKEN", "MCMIAD_DICOMWEB_USER", "MCMIAD_DICOMWEB_PASSWORD"
#: Hosts to which a password may go unencrypted.
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class AddressError(ValueError):
    """An address of an archive cannot be used."""


def checked_url(url: str) -> str:
    """An address ``http(s)://host…`` without credentials, query and closing slash.

    Raises
    ------
    AddressError
        If it is no such address, or holds credentials, which would stand in logs and files.
    """
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        raise AddressError(
            f"the address of {bare} holds credentials, which lists of processes and logs would "
            f"show. Set {TOKEN}, or {USER} and {PASSWORD}, in the environment."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise AddressError(
            f"{url!r} is no address of an archive; one such as https://host:8042/dicom-web is "
            "needed, without a query."
        )
    return url.rstrip("/")


def open_session(url: str) -> requests.Session:
    """A session with the credentials of the environment: a token, or a user and a password.

    Parameters
    ----------
    url : str
        Where it will go; a warning is logged if credentials would go there unencrypted.

    Raises
    ------
    AddressError
        If only one of user and password is set.
    """
    import requests
    from requests.auth import HTTPBasicAuth

    session = requests.Session()
    token, user, password = (os.environ.get(name) for name in (TOKEN, USER, PASSWORD))
    if not token and bool(user) != bool(password):
        there, missing = (USER, PASSWORD) if user else (PASSWORD, USER)
        raise AddressError(f"{there} is set and {missing} is not: set both, or {TOKEN}.")
    if token:
        session.auth = _bearer(token)
    elif user and password:
        session.auth = HTTPBasicAuth(user.encode(), password.encode())
    parts = urlsplit(url)
    if session.auth and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        logger.warning("credentials go to %s unencrypted; use an https address", parts.hostname)
    return session


def _bearer(token: str) -> Any:
    """Authorisation by a token; as a header, an entry for the host in ``.netrc`` replaces it."""

    def authorise(request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorise
