"""The folder of studies, which nothing that a client sends leaves or replaces."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore

from mcmiad_monai.monailabel.requests import EXTENSIONS, RequestError, check_name

#: Methods of which one runs at a time: while MONAI Label refreshes its list, studies are missing.
ONE_AT_A_TIME = (
    *("add_image", "remove_image", "save_label", "remove_label", "refresh", "datalist", "status"),
    *("update_image_info", "update_label_info", "get_image_info", "get_label_info", "json"),
    *("get_image_uri", "get_label_uri", "list_images", "get_labeled_images"),
    *("get_unlabeled_images", "_on_any_event", "_on_modify_event"),
)


class StudiesFolder(LocalDatastore):
    """MONAI Label's datastore of a folder; all its files lie in the folder.

    A name with path parts, another file type than those of the datastore, and a link that leads out
    of the folder are refused (`RequestError` 400); so is a new image in the place of another (409).
    Several threads can use it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._turn = threading.RLock()
        super().__init__(*args, **kwargs)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy a new image into the folder."""
        own, suffix = self._to_id(Path(image_filename).name)
        image_id = image_id or own
        check_name("image", image_id)
        self._check_type(suffix, [])
        target = Path(self._datastore.image_path()) / f"{image_id}{suffix}"
        self.refresh()  # files may have been copied here
        if image_id in self._datastore.objects or os.path.lexists(target):
            raise RequestError(
                409,
                f"there is an image {image_id!r} already, and an upload does not replace it; "
                "choose another name, or delete it first.",
            )
        return str(super().add_image(image_id, image_filename, image_info))

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Copy the label of an image into the folder; a label of the same tag is replaced."""
        check_name("image", image_id)
        check_name("tag", str(getattr(label_tag, "value", label_tag)))
        suffix = self._to_id(Path(label_filename).name)[1]
        self._check_type(suffix, EXTENSIONS)
        folder = Path(self._datastore.label_path(label_tag))
        self._inside(str(folder / f"{image_id}{suffix}"))
        return str(super().save_label(image_id, label_filename, label_tag, label_info))

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels; never what a link leads to."""
        self.get_image_uri(image_id)
        super().remove_image(image_id)

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image; empty where there is none."""
        return self._inside(super().get_image_uri(image_id))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Path of a label; empty where there is none."""
        return self._inside(super().get_label_uri(label_id, label_tag))

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Finished studies with their labels."""
        for pair in super().datalist():
            for path in pair.values():
                self._inside(path)
        return list(super().datalist(full_path))

    def _inside(self, path: str) -> str:
        """The same path; `RequestError` 400 if it leaves the folder."""
        root = os.path.realpath(self._datastore_path)
        if path and not Path(os.path.realpath(path)).is_relative_to(root):
            raise RequestError(
                400,
                "a file of this study is a link that leads out of the folder of the studies; copy "
                "it there, or start the server with --studies where the files are.",
            )
        return path

    def _check_type(self, suffix: str, more: Any) -> None:
        known = [str(pattern).removeprefix("*") for pattern in self._extensions]
        if suffix not in (*known, *more):
            raise RequestError(
                400,
                f"the file type {suffix!r} is none of the datastore's; send {', '.join(known)}.",
            )


def _in_turn(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(self: StudiesFolder, *args: Any, **kwargs: Any) -> Any:
        with self._turn:
            return method(self, *args, **kwargs)

    return run


for _name in ONE_AT_A_TIME:
    setattr(StudiesFolder, _name, _in_turn(getattr(StudiesFolder, _name)))
