"""Results to an archive by DICOMweb's STOW-RS, one instance a request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mcmiad_monai.dicom.answers import Answer
from mcmiad_monai.dicom.credentials import checked_url, open_session
from mcmiad_monai.dicom.refusals import may_pass, meaning

#: Seconds to connect, and to wait for an answer: archives write and index before they answer.
TIMEOUTS = (10.0, 300.0)
#: Answers of HTTP after which another try may help.
PASSING = (408, 425, 429, 500, 502, 503, 504)
#: Answers of HTTP that come from a gateway: the archive behind it was not reached.
GATEWAY = (502, 503, 504)
#: Answers of HTTP to missing or wrong credentials.
LOCKED = (401, 403)


class StowSender:
    """A `Sender` to the DICOMweb address of an archive.

    Parameters
    ----------
    url : str
        ``https://host/dicom-web``.

    Raises
    ------
    AddressError
        See `checked_url` and `open_session`.
    """

    def __init__(self, url: str) -> None:
        from dicomweb_client.api import DICOMwebClient

        self.target = checked_url(url)
        self._response: Any = None
        self._client = DICOMwebClient(
            self.target,
            session=open_session(self.target),
            headers={"Accept": "application/dicom+json"},
            callback=self._keep,
            timeout=TIMEOUTS,
        )
        # its own second try of a large instance sends an empty one: the generator has ended
        self._client.set_http_retry_params(retry=False)

    def _keep(self, response: Any, *_more: Any, **_options: Any) -> None:
        self._response = response

    def store(self, files: Sequence[Path]) -> Iterator[Answer]:
        """An answer to each file."""
        for file in files:
            yield self._one(file)

    def _one(self, file: Path) -> Answer:
        import requests
        from pydicom import dcmread

        dataset, self._response = dcmread(file), None
        try:
            told = self._client.store_instances([dataset])
        except requests.HTTPError as error:
            told = None
            if error.response is None:
                return Answer(False, str(error), again=True, lost=True)
        except (requests.ConnectionError, requests.Timeout) as error:
            why = f"{self.target} was not reached ({type(error).__name__})"
            return Answer(False, why, again=True, lost=True)
        return _answer(self._response, told, str(dataset.SOPInstanceUID))


def _answer(response: Any, told: Any, instance: str) -> Answer:
    """What an archive says of one instance, in its status and in its list."""
    status = response.status_code
    listed = _list_in(response) or told
    if listed is not None:
        for item in listed.get("FailedSOPSequence", []):
            if str(item.get("ReferencedSOPInstanceUID", "")) == instance:
                code = int(item.get("FailureReason", 0x0110))
                return Answer(False, f"the archive refused it: {meaning(code)}", may_pass(code))
        for item in listed.get("ReferencedSOPSequence", []):
            if str(item.get("ReferencedSOPInstanceUID", "")) == instance:
                code = item.get("WarningReason")
                return Answer(True, "" if not code else f"the archive warns: {meaning(int(code))}")
    if status == 200 and not response.content:  # which says that all were stored
        return Answer(True)
    if status < 300:
        return Answer(False, f"the archive answered {status} and did not say that it stored it")
    why = f"the archive answered {status} {response.reason}"
    if status in LOCKED:
        why += "; see MCMIAD_DICOMWEB_TOKEN, _USER and _PASSWORD"
    return Answer(False, why, again=status in PASSING, lost=status in (*GATEWAY, *LOCKED))


def _list_in(response: Any) -> Any:
    """The list of instances in an answer in JSON, of an error too; None where there is none."""
    from pydicom import Dataset

    if "json" not in response.headers.get("Content-Type", ""):
        return None
    try:
        return Dataset.from_json(response.text)
    except Exception:  # whatever pydicom raises for JSON that is not DICOM's
        return None
