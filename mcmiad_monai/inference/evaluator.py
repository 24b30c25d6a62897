"""The MONAI evaluator of whole studies; one bad study never stops the others."""

from __future__ import annotations

import logging
from typing import Any

from monai.engines import SupervisedEvaluator

from mcmiad_monai.errors import root_message

logger = logging.getLogger(__name__)


class StudyEvaluator(SupervisedEvaluator):
    """Run an inferer over whole studies; one bad study never stops the others.

    A study that cannot be loaded, inferred or written is kept in :attr:`failures` and logged, and
    gives an empty output, which metrics and handlers of this project pass over.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.failures: dict[str, str] = {}

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        name = str(batchdata["case"][0])
        if "error" in batchdata:
            return self._fail(engine, name, batchdata["error"][0])
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            logger.debug("study %s", name, exc_info=True)
            return self._fail(engine, name, root_message(error))

    def _fail(self, engine: Any, name: str, message: str) -> list[dict[str, Any]]:
        self.failures[name] = message
        logger.error("study %s failed: %s", name, message)
        engine.state.output = []
        return []
