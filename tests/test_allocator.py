"""Freed memory is kept where the C library can, and nothing breaks where it cannot."""

import subprocess
import sys

import pytest

from avse import allocator


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_large_buffers_are_not_mapped_again_and_again():
    code = (
        "import resource, sys\nfrom avse.allocator import keep_freed_memory\n"
        "took = keep_freed_memory() if sys.argv[1] == 'on' else True\n"
        "for _ in range(20): b = bytearray(64 << 20); del b\n"
        "print(int(took), resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
    )
    faults = {}
    for mode in ("on", "off"):
        out = subprocess.run([sys.executable, "-c", code, mode], capture_output=True, text=True, check=True).stdout
        took, faults[mode] = map(int, out.split())
        if not took:
            pytest.skip("this C library has no mallopt")
    assert faults["on"] < 0.5 * faults["off"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_what_is_kept_can_be_given_back():
    code = (
        "from avse.allocator import keep_freed_memory, release_freed_memory\n"
        "def held(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "took = keep_freed_memory(); low = held(); large = bytearray(b'1') * (256 << 20); small = bytearray(1 << 20)\n"
        "del large; kept = held(); release_freed_memory(); print(int(took), low, kept, held())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    took, low, kept, left = map(int, out.split())
    if not took:
        pytest.skip("this C library has no mallopt")
    assert kept - low > 200 << 20 and left - low < 50 << 20


def test_other_systems_are_let_be(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.keep_freed_memory() is False and allocator.release_freed_memory() is False
