"""Neighbours of valid files through every loader: something valid comes out, or an error of the documented family.

AVSE_FUZZ_EXAMPLES=5000 sets the examples a loader; without it each loader has its share of the seconds below.
"""

import os
import zlib

import pytest
import robust_data  # noqa: F401 - these four add their loaders
import robust_indexes  # noqa: F401
import robust_models  # noqa: F401
import robust_records  # noqa: F401
from hypothesis import HealthCheck, given, settings
from robust_kit import fault, mutated
from robust_loaders import LOADERS

ASKED = int(os.environ.get("AVSE_FUZZ_EXAMPLES", "0"))
SHORT, LONG = 2.5, 45.0
"""Seconds of all loaders together in `make test` and in `make test-all`, by the estimate of each."""


def examples(name, seconds):
    return ASKED or max(2, int(1000 * seconds / len(LOADERS) / (LOADERS[name].ms + 2)))


def findings(name, count, place, request):
    """Load so many neighbours and return what went wrong, each kind once with its shortest example."""
    outside = place.with_name("outside")
    outside.mkdir()
    (outside / "secret.png").write_bytes(b"not for you")
    fuzzed = LOADERS[name].build(place, request)
    seed = fuzzed.seed if fuzzed.seed is not None else fuzzed.path.read_bytes()
    names = fuzzed.names if fuzzed.names is not None else (fuzzed.path.name,)
    found = {}

    def run(data):
        if fuzzed.path is None:
            return fault(lambda: fuzzed.load(fuzzed.wrap(data)), names, fuzzed.family, outside)
        fuzzed.path.write_bytes(fuzzed.wrap(data))
        return fault(fuzzed.load, names, fuzzed.family, outside)

    fuzzed.load() if fuzzed.path is not None else fuzzed.load(fuzzed.wrap(seed))  # loads what is loaded late, too
    assert run(seed) is None, "the valid file itself"

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=not ASKED, suppress_health_check=list(HealthCheck)
    )
    @given(mutated(seed, fuzzed.kind))
    def try_all(data):
        if said := run(data):
            kind = said.split("'")[0].split('"')[0]
            if kind not in found or len(data) < len(found[kind][1]):
                found[kind] = said, data

    try_all()
    return found


def told(name, found):
    return "\n".join([name, *(f"  {said}\n    {data[:300]!r} ({len(data)} bytes)" for said, data in found.values())])


@pytest.mark.skipif(bool(ASKED), reason="the long form runs")
@pytest.mark.parametrize("name", [name for name in LOADERS if LOADERS[name].ms < 50])
def test_some_neighbours(name, tmp_path, request):
    found = findings(name, examples(name, SHORT), tmp_path / f"data-{zlib.crc32(name.encode())}", request)
    assert not found, told(name, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_many_neighbours(name, tmp_path, request):
    found = findings(name, examples(name, LONG), tmp_path / f"data-{zlib.crc32(name.encode())}", request)
    assert not found, told(name, found)
