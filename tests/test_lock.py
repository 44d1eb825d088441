"""One owner at a time; who it is, is said as far as the file says it."""

import os

import pytest

from avse.lock import NAME, LockError, OwnerLock, is_locked


def test_one_owner_until_it_lets_go(tmp_path):
    lock, other = OwnerLock(tmp_path), OwnerLock(tmp_path)
    assert not is_locked(tmp_path)
    lock.acquire()
    lock.acquire()  # kept
    assert lock.held and is_locked(tmp_path) and not other.held
    with pytest.raises(LockError, match=rf"is in use by this very process \({os.getpid()}\)") as error:
        other.acquire()
    assert error.value.held
    lock.release()
    lock.release()
    other.acquire()
    assert other.held and not lock.held
    other.release()
    assert not is_locked(tmp_path)


@pytest.mark.parametrize(
    ("said", "holder"), [(b"\xff\xfe", "another process"), (b"no number", "another process"), (b"7 ", "process 7")]
)
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path, said, holder):
    lock = OwnerLock(tmp_path)
    lock.acquire()
    (tmp_path / NAME).write_bytes(said)
    with pytest.raises(LockError, match=f"is in use by {holder}$"):
        OwnerLock(tmp_path).acquire()
    lock.release()


def test_a_lock_file_that_cannot_be_written(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(LockError, match="its lock file cannot be written") as error:
        OwnerLock(tmp_path).acquire()
    assert not error.value.held
