from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from router_world import DIMENSION, World

from adapterhub.errors import IntegrityError
from adapterhub.router import Background, Calibration, Epoch, Sums


def test_what_is_saved_is_read_back_up_to_float32(tmp_path):
    world = World()
    sums = Sums.of([world.texts(world.mean(), 5) for _ in range(12)], DIMENSION)
    Background("fake", sums, Calibration(4.0, np.arange(5.0), np.linspace(0, 1, 5), -7.0)).save(tmp_path / "b.npz")
    found = Background.load(tmp_path / "b.npz")
    assert (found.fingerprint, found.sums.freedom, found.sums.tasks) == ("fake", 48, 12)
    for name in ("scatter", "means", "outers", "inverse_counts"):
        np.testing.assert_allclose(getattr(found.sums, name), getattr(sums, name), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.calibration.scores, np.arange(5.0))
    np.testing.assert_allclose(found.calibration.rivals, np.linspace(0, 1, 5), atol=1e-7)
    assert (found.calibration.temperature, found.calibration.null) == (4.0, -7.0)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 truncated"])
def test_a_broken_file_is_an_integrity_error(tmp_path, content):
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"known arrays"):
        Background.load(tmp_path / "b.npz")


def test_an_npz_of_something_else_or_of_pickles_is_an_integrity_error(tmp_path):
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    np.savez(tmp_path / "b.npz", numbers=np.array([{}], dtype=object))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(IntegrityError):
            Background.load(tmp_path / name)


def test_the_shipped_one():
    found = Background.shipped()
    assert found.fingerprint.startswith("all-MiniLM-L6-v2|sha256=53aa5117")
    assert found.sums.scatter.shape == (384, 384)
    assert found.sums.tasks >= 80
    np.testing.assert_array_equal(found.sums.scatter, found.sums.scatter.T)
    assert 2 < found.calibration.temperature < 6
    assert -20 < found.calibration.null < 0
    assert 0 < found.calibration.set_bound(0.05, 8) < found.calibration.set_bound(0.05, 10**6) < 1
    assert -20 < found.calibration.threshold(0.05) < 0
    epoch = Epoch.fit(found.sums)
    assert np.isfinite(epoch.transform).all()
    assert epoch.psi[0] > 5
    assert resources.files("adapterhub.router").joinpath("background.npz").stat().st_size < 700_000
