from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from router_world import DIMENSION, World

from adapterhub.errors import IntegrityError
from adapterhub.router import Background, Calibration, Epoch, Sums
from adapterhub.router._calibration import Level


def test_what_is_saved_is_read_back_up_to_float32(tmp_path):
    world = World()
    sums = Sums.of([world.texts(world.mean(), 5) for _ in range(12)], DIMENSION)
    random = np.random.default_rng(0)
    levels = tuple(
        Level(examples, random.normal(size=count), random.normal(size=(count, 3)), np.array([1, 4, 9]))
        for examples, count in ((20, 5), (1, 8))
    )
    Background("fake", sums, Calibration(4.0, levels, -7.0)).save(tmp_path / "b.npz")
    found = Background.load(tmp_path / "b.npz")
    assert (found.fingerprint, found.sums.freedom, found.sums.tasks) == ("fake", 48, 12)
    for name in ("scatter", "means", "outers", "inverse_counts"):
        np.testing.assert_allclose(getattr(found.sums, name), getattr(sums, name), rtol=1e-6, atol=1e-6)
    assert [level.examples for level in found.calibration.levels] == [20, 1]
    for level, expected in zip(found.calibration.levels, levels, strict=True):
        np.testing.assert_allclose(level.scores, expected.scores, rtol=1e-3)
        np.testing.assert_allclose(level.rivals, expected.rivals, rtol=1e-3)
        np.testing.assert_array_equal(level.sizes, expected.sizes)
    assert (found.calibration.temperature, found.calibration.null) == (4.0, -7.0)


def test_a_background_serves_its_encoder_in_both_dtypes():
    found = Background.shipped()
    name = found.fingerprint
    assert "|dtype=float32|" in name
    assert found.serves(name)
    assert found.serves(name.replace("|dtype=float32|", "|dtype=bfloat16|"))
    for other in (name.replace("float32", "float16"), name.replace("prefix=''", "prefix='query: '"), "fake"):
        assert not found.serves(other)


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
    assert [level.examples for level in found.calibration.levels] == [20, 5, 1, 0]
    small, large = (found.calibration.bounds(0.05, tasks) for tasks in (8, 10**6))
    for bound, other in zip(small, large, strict=True):
        assert 0 < bound.miss < other.miss < 1  # more tasks: larger sets, and more that they score together
        assert -20 < bound.threshold < other.threshold < 60
    assert [bound.miss for bound in small] == sorted(bound.miss for bound in small)  # fewer examples: larger sets
    epoch = Epoch.fit(found.sums)
    assert np.isfinite(epoch.transform).all()
    assert epoch.psi[0] > 5
    assert resources.files("adapterhub.router").joinpath("background.npz").stat().st_size < 700_000
