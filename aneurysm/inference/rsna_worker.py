"""The process behind `aneurysm.inference.rsna.RsnaPredictor`: lines of JSON in, settings and then series; and out."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from aneurysm.errors import AneurysmError, UsageError, words_of
from aneurysm.inference.calibration import base_rates
from aneurysm.inference.predictor import Predictor, load_predictor
from aneurysm.inference.read_series import Failure, read_or_fail
from aneurysm.labels import LABELS
from aneurysm.rawdata.folder import safe_source

PUBLISHED_RATES: Final = (0.03,) * 6 + (366 / 4348, 46 / 4348) + (0.03,) * 5 + (1864 / 4348,)
"""
Shares of positives among the 4,348 series of the competition's train.csv, as published: 1,864 with an aneurysm, and by
site 46 (left anterior cerebral) to 366 (anterior communicating). The other sites get the geometric mean of these two.
"""


def fallback_rates(checkpoints: Sequence[str]) -> list[float]:
    """Return how frequent each label was in training, or `PUBLISHED_RATES` if the checkpoints don't know."""
    try:
        return list(base_rates(checkpoints).values())
    except UsageError:
        return list(PUBLISHED_RATES)


def main() -> None:
    """Serve until standard input ends."""
    # Libraries print what they like to standard output; the answers have a pipe of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    with suppress(OSError), Path("/proc/self/oom_score_adj").open("w") as file:
        file.write("1000")  # where memory ends, let the kernel kill this process and not the server

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    settings = json.loads(sys.stdin.readline())
    try:
        predictor = load_predictor(settings["checkpoints"], candidates=0, **settings["options"])
        predictor.check([safe_source("dicom", folder=Path("dicom"))])  # which is all that will come
        rates = fallback_rates(settings["checkpoints"])
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
        if not isinstance(error, AneurysmError):
            traceback.print_exc()
        tell({"error": words_of(error), "usage": isinstance(error, (UsageError, TypeError))})
        return
    tell({"base_rates": rates})
    series: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(series.put,), daemon=True).start()
    while True:
        answer = answer_for(predictor, series.get())
        tell(answer)
        if answer.get("broken"):
            return


def _listen(put: Callable[[str], None]) -> None:
    for line in sys.stdin:
        put(json.loads(line)["series"])
    os._exit(0)  # the parent is gone: nobody waits for the series that may be in work


def answer_for(predictor: Predictor, series_path: str) -> dict[str, Any]:
    """
    Return ``probabilities`` of one series, or the ``error`` that stands against it.

    ``broken`` says that this process may be of no more use: after an error on a GPU, each later call fails as well.
    """
    folder = Path(series_path)
    try:
        # Named by its folder: the files of the test set carry no SeriesInstanceUID. Read right here, not in processes
        # as predict() does: this one may die as well, and to start another takes seconds.
        read = read_or_fail(safe_source(folder.name, folder=folder), predictor.spec)
        if isinstance(read, Failure):
            return {"error": f"{read.reason}: {read.detail}"}
        answer = predictor.of(read)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent has an answer to give
        traceback.print_exc()
        return {"error": words_of(error), "broken": True}
    probabilities = [answer.probabilities[label] for label in LABELS]
    if not all(0 <= p <= 1 for p in probabilities):
        return {"error": "the model's answer is no probability: not a number, or out of range"}
    return {"probabilities": probabilities}


if __name__ == "__main__":
    main()
