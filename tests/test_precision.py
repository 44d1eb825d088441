"""Float32 without tf32: on processors only the flag can be seen, what it does is in tests/test_gpu.py."""

import pytest
import torch

from avse.precision import exact_float32


@pytest.mark.parametrize(("gpu", "allowed"), [(True, True), (True, False), (False, True)])
def test_the_flag_is_off_meanwhile_and_then_as_it_was(monkeypatch, gpu, allowed):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        with pytest.raises(KeyError), exact_float32():
            assert torch.backends.cudnn.allow_tf32 is (allowed and not gpu)
            raise KeyError
        assert torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cudnn.allow_tf32 = before
