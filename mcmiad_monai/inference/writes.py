"""Work on one study that goes on while the next one is computed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from mcmiad_monai.errors import root_message

logger = logging.getLogger(__name__)


class Writes:
    """Write the files of a study in a thread of their own.

    At most one study waits to be written: whoever brings the next waits with it, so that memory
    does not grow where the disk is slower than the network.

    Attributes
    ----------
    failures : dict
        ``case → message`` of what could not be written.
    """

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writes")
        self._pending: tuple[str, Future[object]] | None = None

    def submit(self, case: str, work: Callable[[], object]) -> None:
        """Do a study's work behind the caller's back, once that of the study before is done."""
        self.finish()
        self._pending = case, self._thread.submit(work)

    def finish(self) -> None:
        """Wait until all is written; a failure is logged and kept, and stops nothing."""
        if self._pending is None:
            return
        case, future = self._pending
        try:
            future.result()  # an interrupt while it waits leaves it pending
        except Exception as error:
            logger.debug("study %s", case, exc_info=True)
            self.failures[case] = root_message(error)
            logger.error("study %s failed: %s", case, self.failures[case])
        self._pending = None
