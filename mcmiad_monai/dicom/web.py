"""Series of a DICOMweb archive: found by QIDO-RS, fetched by WADO-RS."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mcmiad_monai.data.cases.names import Case, CaseError
from mcmiad_monai.data.cases.patients import patient_of_id
from mcmiad_monai.dicom.asking import ArchiveError, archive, patiently
from mcmiad_monai.files.room import room_for
from mcmiad_monai.modality import MODALITIES, Modality, get_modality, modality_of_dicom

logger = logging.getLogger(__name__)

#: In the description of every series that this program makes.
OWN_DESCRIPTION = "research, not for diagnosis"
#: Results in one answer that are asked for; a server may give fewer.
PAGE = 500
#: Address of a series: that of the archive, and the UIDs of study and series.
SERIES = re.compile(
    r"(?P<archive>.+)/studies/(?P<study>[0-9.]{1,64})/series/(?P<series>[0-9.]{1,64})"
)
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
MODALITY, DESCRIPTION, PATIENT_ID = "00080060", "0008103E", "00100020"
STUDY_UID, SERIES_UID, INSTANCE_UID = "0020000D", "0020000E", "00080018"
FIELDS = ("Modality", "SeriesDescription", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")


def find_series(
    address: str,
    query: Sequence[tuple[str, str]] = (),
    *,
    modality: Modality | str | None = None,
) -> Iterator[Case]:
    """Series of an archive that can be studies of a model, page by page.

    Parameters
    ----------
    address : str
        Of the archive's DICOMweb services, as ``https://host/dicom-web``.
    query : sequence of (str, str)
        Attributes with the value each must have, as QIDO-RS matches them:
        ``("StudyDate", "20260101-20261231")``.
    modality : Modality or str, optional
        Of the model. The archive is asked for series of its kind only, unless `query` says which;
        the cases of a unified model carry their modality.

    Yields
    ------
    dict
        A case as `find_cases` gives it: ``case``, a digest of the series' UID; ``image``, the
        address of the series; ``patient``, a digest of the PatientID where there is one.

    Raises
    ------
    CaseError
        If an attribute is none of DICOM's, or there is no such series.
    AddressError
        If the address cannot be used; see `checked_url`.
    ArchiveError
        If the archive cannot be asked.
    """
    kind = get_modality(modality) if isinstance(modality, str) else modality
    filters = _filters(query)
    if kind is not None and kind.dicom is not None:
        filters.setdefault("Modality", kind.dicom)
    client = archive(address)
    found, skipped = 0, Counter[str]()
    for entry in _pages(
        address,
        SERIES_UID,
        lambda **page: client.search_for_series(fields=FIELDS, search_filters=filters, **page),
    ):
        if reason := _why_not(entry):
            skipped[reason] += 1
            continue
        found += 1
        yield _case(client.base_url, entry, kind)
    if skipped:
        told = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        logger.info("%s: series that are no studies were skipped: %s", address, told)
    if not found:
        asked = ", ".join(f"{key}={value}" for key, value in filters.items()) or "no query"
        raise CaseError(
            f"{address} has no series that could be a study ({asked}); series of "
            f"{_codes()} are looked for. Ask for others by --query."
        )


def fetch_series(url: str, folder: Path) -> None:
    """Write every instance of a series into a folder, one after the other, as the archive has it.

    Parameters
    ----------
    url : str
        Of the series, as `find_series` gives it.
    folder : Path
        Exists. Its files are named after the UIDs of the instances.

    Raises
    ------
    CaseError
        If `url` is no address of a series.
    ArchiveError
        If the archive cannot be asked, or sends something else.
    DiskFullError
        If there is no room.
    """
    parts = SERIES.fullmatch(url)
    if parts is None:
        raise CaseError(
            f"{url} is not the address of a series; one ends in /studies/UID/series/UID."
        )
    study, series = parts["study"], parts["series"]
    client = archive(parts["archive"])
    entries = _pages(
        url,
        INSTANCE_UID,
        lambda **page: client.search_for_instances(study, series, **page),
    )
    instances = sorted(_uid(entry, INSTANCE_UID, url) for entry in entries)
    if not instances:
        raise ArchiveError(f"{url} has no instances; the series may have been deleted meanwhile.")
    for instance in instances:
        dataset = patiently(
            url,
            lambda uid=instance: client.retrieve_instance(  # type: ignore[misc]
                study, series, uid, media_types=(("application/dicom", "*"),)
            ),
        )
        found = (dataset.get("SeriesInstanceUID"), dataset.get("SOPInstanceUID"))
        if found != (series, instance):
            raise ArchiveError(
                f"{url} sent another instance than it was asked for; the archive, or a proxy "
                "before it, mixes answers up."
            )
        path = folder / f"{instance}.dcm"
        with room_for(path):
            dataset.save_as(path)


def _filters(query: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The query as QIDO-RS has it: each attribute once, by a keyword or number that exists."""
    from pydicom.datadict import dictionary_has_tag, tag_for_keyword

    filters: dict[str, str] = {}
    for key, value in query:
        number = int(key, 16) if re.fullmatch("[0-9A-Fa-f]{8}", key) else None
        known = tag_for_keyword(key) is not None if number is None else dictionary_has_tag(number)
        if not known:
            raise CaseError(
                f"{key!r} is no attribute of DICOM; a keyword such as Modality, StudyDate or "
                "StudyDescription is needed."
            )
        if key in filters:
            raise CaseError(
                f"{key} is asked for twice; one value is matched. Give the archive twice, in two "
                "runs, or leave one out."
            )
        filters[key] = value
    return filters


def _pages(
    address: str, key: str, ask: Callable[..., list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """All results of a search, each once, however few a server gives at a time."""
    seen: set[bytes] = set()
    offset = 0
    while True:
        page = patiently(address, lambda start=offset: ask(limit=PAGE, offset=start))  # type: ignore[misc]
        fresh = 0
        for entry in page:
            digest = hashlib.sha256(str(_value(entry, key)).encode()).digest()[:12]
            if digest not in seen:
                seen.add(digest)
                fresh += 1
                yield entry
        if not page:
            return
        if not fresh and len(page) == PAGE:
            raise ArchiveError(
                f"{address} gives the same {PAGE} results whatever the offset, so that the others "
                "cannot be seen. Ask for fewer by --query, for example a StudyDate."
            )
        if not fresh:
            logger.warning("%s gives no further pages; it may have more than was seen", address)
            return
        offset += len(page)


def _why_not(entry: dict[str, Any]) -> str | None:
    """Why a series is no study, in a few words; None if it can be one."""
    code = str(_value(entry, MODALITY) or "of no modality")
    if OWN_DESCRIPTION in str(_value(entry, DESCRIPTION) or "").lower():
        return "results of this program"
    return None if modality_of_dicom(code) else code


def _case(base: str, entry: dict[str, Any], kind: Modality | None) -> Case:
    study, series = _uid(entry, STUDY_UID, base), _uid(entry, SERIES_UID, base)
    patient = patient_of_id(str(_value(entry, PATIENT_ID) or ""))
    modality = modality_of_dicom(str(_value(entry, MODALITY)))
    return {
        "case": f"series_{hashlib.sha256(series.encode()).hexdigest()[:16]}",
        "image": f"{base}/studies/{study}/series/{series}",
        "label": None,
        "anomalous": None,
        **({} if patient is None else {"patient": patient}),
        **({"modality": modality} if kind is not None and kind.is_unified else {}),
    }


def _value(entry: dict[str, Any], key: str) -> Any:
    """First value of an attribute in DICOM's JSON; None if it has none."""
    values = (entry.get(key) or {}).get("Value") or [None]
    return values[0]


def _uid(entry: dict[str, Any], key: str, address: str) -> str:
    """A UID, which becomes part of addresses and names of files."""
    uid = str(_value(entry, key) or "")
    if len(uid) > 64 or not UID.fullmatch(uid):
        raise ArchiveError(
            f"{address} gives a result without a valid UID ({key}: {uid[:80]!r}); digits and dots "
            "are needed. The archive does not keep to QIDO-RS."
        )
    return uid


def _codes() -> str:
    return ", ".join(sorted(str(kind.dicom) for kind in MODALITIES.values()))
