"""Weights to begin from, in a file that a model option names: which ones they are, and that there are none."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aneurysm.errors import UsageError
from aneurysm.models.registry import PRETRAINED, find_architecture
from aneurysm.training.config import ResolvedConfig

_log: Final = logging.getLogger(__name__)


def note_pretrained(config: ResolvedConfig) -> ResolvedConfig:
    """
    Return the configuration with the SHA-256 of the file of weights, if it names one.

    A model that could begin from such a file, and is given none, is told of in the log: from random weights it takes
    far longer, and seldom becomes as good.

    Raises
    ------
    UsageError
        The file can't be read, or is another one than the configuration says.
    """
    path = config.model_options.get(PRETRAINED)
    if not path:
        if PRETRAINED in _options(find_architecture(config.model).build):
            _log.warning(
                "%s begins from random weights. Those of ImageNet make it learn faster: name a file of them, "
                "model_options.%s in the configuration", config.model, PRETRAINED,
            )  # fmt: skip
        return config
    try:
        found = hashlib.sha256(Path(str(path)).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"the weights {path} can't be read: {error.strerror}") from error
    if config.weights_sha256 not in (None, found):
        raise UsageError(
            f"the weights {path} are others than the configuration says: their SHA-256 is {found}, not "
            f"{config.weights_sha256}"
        )
    return config.model_copy(update={"weights_sha256": found})


def without_pretrained(options: dict[str, Any]) -> dict[str, Any]:
    """Return a model's options for weights that come from elsewhere: then the file need not be there any more."""
    return {name: value for name, value in options.items() if name != PRETRAINED}


def _options(build: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(build).parameters)
    except (TypeError, ValueError):  # of some callables Python knows none
        return []
