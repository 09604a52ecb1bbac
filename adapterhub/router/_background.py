"""Statistics over other people's tasks, shipped as numbers, so that a hub of eight tasks has a covariance.

`background.npz` is made by `scripts/background_statistics.py`. From each of 84 public tasks whose licence allows any
use, 32 training inputs in their prompt wordings were encoded with all-MiniLM-L6-v2; only the sums are kept.

The calibration in the same file is cross-fitted: the tasks are dealt into five hubs; each hub is scored under the
statistics of the other four, with 20 examples and the description a task, on 8 validation inputs a task that no
statistic saw. So the temperature and the thresholds are those of a hub whose tasks the background never saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from adapterhub.errors import IntegrityError
from adapterhub.router._calibration import Calibration
from adapterhub.router._statistics import Sums

__all__ = ["Background"]


@dataclass(frozen=True)
class Background:
    """Sums over background tasks and the calibration that belongs to them. Its tasks are never routed to.

    Args:
        fingerprint: Of the encoder whose vectors were summed; statistics of different encoders never mix.
        sums: The sums.
        calibration: Temperature and held-out scores.
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
                scores, rivals = (stored[key].astype(np.float64) for key in ("scores", "rivals"))
                calibration = Calibration(float(numbers[3]), scores, rivals, float(numbers[4]))
                return cls(str(stored["fingerprint"]), sums, calibration)
        except (KeyError, ValueError, IndexError, OSError, EOFError, BadZipFile) as error:
            raise IntegrityError(
                f"Background statistics are an .npz of known arrays. Found {path}: {error}. Make it again."
            ) from error

    def save(self, path: Path) -> None:
        """Write it in float32, of the symmetric matrices the upper triangles only.

        Args:
            path: Path of the .npz to write.
        """
        sums, calibration = self.sums, self.calibration
        upper = np.triu_indices(len(sums.means))
        np.savez_compressed(
            path,
            fingerprint=np.array(self.fingerprint),
            scatter=sums.scatter[upper].astype(np.float32),
            outers=sums.outers[upper].astype(np.float32),
            means=sums.means.astype(np.float32),
            numbers=np.array(
                [sums.freedom, sums.tasks, sums.inverse_counts, calibration.temperature, calibration.null]
            ),
            scores=calibration.scores.astype(np.float32),
            rivals=calibration.rivals.astype(np.float32),
        )


def _square(upper: NDArray[np.float32]) -> NDArray[np.float64]:
    dimension = round((np.sqrt(8 * len(upper) + 1) - 1) / 2)
    square = np.zeros((dimension, dimension))
    square[np.triu_indices(dimension)] = upper
    return square + np.triu(square, 1).T
