"""Probabilities <-> log-odds (logits): the one pair of functions that evaluating, calibrating and predicting share.

A temperature or threshold that was fitted through one clip and applied through another is not the same temperature. The
probabilities of a network are sure beyond float32, so nothing is clipped here but 0 and 1 themselves.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_LOWEST: Final = float(np.finfo(np.float64).tiny)
_HIGHEST: Final = float(np.nextafter(1.0, 0.0))


def logit(probabilities: ArrayLike) -> NDArray[np.float64]:
    """
    Return log-odds, float64, of any shape: from -708.4 to 36.7.

    0 and 1 count as the float64 numbers next to them (the lowest normal one, and 1 - 2**-53). All others keep their
    own log-odds.
    """
    from scipy import special

    return np.asarray(special.logit(np.clip(np.asarray(probabilities, np.float64), _LOWEST, _HIGHEST)))


def sigmoid(logits: ArrayLike) -> NDArray[np.float64]:
    """Return the probabilities of log-odds, float64; accurate at both ends, and without overflow."""
    from scipy import special

    return np.asarray(special.expit(np.asarray(logits, np.float64)))


def apply_temperature(probabilities: ArrayLike, temperature: ArrayLike) -> NDArray[np.float64]:
    """
    Return the probabilities of logits divided by ``temperature``; where that is 1, the same bits.

    Element by element, so that a threshold and the score that it was taken from still compare as equal afterwards.
    """
    given, divisor = np.asarray(probabilities, np.float64), np.asarray(temperature, np.float64)
    # Through the logarithm and back, the last bit may change.
    return np.asarray(np.where(divisor == 1, given, sigmoid(logit(given) / divisor)))


def mean_of_logits(probabilities: ArrayLike) -> NDArray[np.float64]:
    """
    Return (...) from (models, ...): the probabilities of the models' mean log-odds.

    Where all models say the same, the result is that to the bit: no ties arise, and no order changes.
    """
    given = np.asarray(probabilities, np.float64)
    mean = sigmoid(logit(given).mean(axis=0))
    return np.asarray(np.where((given == given[0]).all(axis=0), given[0], mean))
