"""Statistics over other people's tasks, shipped as numbers, so that a hub of eight tasks has a covariance.

`background.npz` is made by `scripts/background_statistics.py`. From each of 84 public tasks whose licence allows any
use, 128 training inputs, most of them bare, some behind an instruction, were encoded with all-MiniLM-L6-v2; only the
sums are kept, that within tasks with a quarter of its weight, so that a refit hears the hub's own examples.

The calibration in the same file is cross-fitted: the tasks are dealt into five parts; 8 validation inputs of each task
are scored under the statistics of the other parts, in a hub of all tasks, with 20, 5, 1 and 0 examples and the
description a task. So the temperature and the thresholds are those of tasks that the background never saw. Measured so
on 89 tasks, with 20, 5, 1 and 0 examples: of texts of a known task 3.7, 3.6, 3.7 and 4.1 % are refused where 5 % are
tolerated, and sets that shall cover 95, 90 and 80 % of them are off by at most 0.8, 1.0 and 1.6 points. Where all
examples stand behind an instruction that users word otherwise 33, 16, 6 and 1 % are refused, and where every second one
stands alone 6, 4, 3 and 1 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from adapterhub.errors import IntegrityError
from adapterhub.router._calibration import Calibration, Level
from adapterhub.router._statistics import Sums

__all__ = ["Background"]


@dataclass(frozen=True)
class Background:
    """Sums over background tasks and the calibration that belongs to them. Its tasks are never routed to.

    Args:
        fingerprint: Of the encoder whose vectors were summed; statistics of different encoders never mix, those of one
            in float32 and in bfloat16 are the same.
        sums: The sums.
        calibration: Temperature and held-out scores, by number of examples.
    """

    fingerprint: str
    sums: Sums
    calibration: Calibration

    @classmethod
    def shipped(cls) -> Background:
        """The one that comes with the package, for `SentenceEncoder()`."""
        return cls.load(Path(__file__).with_name("background.npz"))

    @classmethod
    def load(cls, path: Path) -> Background:
        """Read a background; nothing is unpickled.

        Args:
            path: Path of the .npz.

        Raises:
            IntegrityError: If the file is not a background.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                numbers = stored["numbers"]
                sums = Sums(
                    scatter=_square(stored["scatter"]),
                    freedom=float(numbers[0]),
                    tasks=int(numbers[1]),
                    means=stored["means"].astype(np.float64),
                    outers=_square(stored["outers"]),
                    inverse_counts=float(numbers[2]),
                )
                levels = tuple(
                    Level(
                        int(examples),
                        stored[f"scores{examples}"].astype(np.float64),
                        stored[f"rivals{examples}"].astype(np.float64),
                        stored[f"sizes{examples}"].astype(np.int64),
                    )
                    for examples in stored["levels"]
                )
                calibration = Calibration(float(numbers[3]), levels, float(numbers[4]))
                return cls(str(stored["fingerprint"]), sums, calibration)
        except (KeyError, ValueError, IndexError, OSError, EOFError, BadZipFile) as error:
            raise IntegrityError(
                f"Background statistics are an .npz of known arrays. Found {path}: {error}. Make it again."
            ) from error

    def serves(self, fingerprint: str) -> bool:
        """Whether it is for an encoder: the one whose vectors were summed, or the same in bfloat16.

        Args:
            fingerprint: Of the encoder.
        """
        return self.fingerprint == fingerprint.replace("|dtype=bfloat16|", "|dtype=float32|")

    def save(self, path: Path) -> None:
        """Write it in float32, of the symmetric matrices the upper triangles only, and the calibration in float16.

        Args:
            path: Path of the .npz to write.
        """
        sums, calibration = self.sums, self.calibration
        upper = np.triu_indices(len(sums.means))
        levels: dict[str, Any] = {"levels": np.array([level.examples for level in calibration.levels], dtype=np.int32)}
        for level in calibration.levels:
            levels[f"scores{level.examples}"] = level.scores.astype(np.float16)
            levels[f"rivals{level.examples}"] = level.rivals.astype(np.float16)
            levels[f"sizes{level.examples}"] = level.sizes.astype(np.int32)
        np.savez_compressed(
            path,
            fingerprint=np.array(self.fingerprint),
            scatter=sums.scatter[upper].astype(np.float32),
            outers=sums.outers[upper].astype(np.float32),
            means=sums.means.astype(np.float32),
            numbers=np.array(
                [sums.freedom, sums.tasks, sums.inverse_counts, calibration.temperature, calibration.null]
            ),
            **levels,
        )


def _square(upper: NDArray[np.float32]) -> NDArray[np.float64]:
    dimension = round((np.sqrt(8 * len(upper) + 1) - 1) / 2)
    square = np.zeros((dimension, dimension))
    square[np.triu_indices(dimension)] = upper
    return square + np.triu(square, 1).T
