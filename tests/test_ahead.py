"""Things made in a thread before they are asked for: order, errors in their place, an end."""

import threading
import time

import pytest

from avse.ahead import Ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_an_error_comes_where_its_item_would_have_come():
    def items():
        yield 1
        yield 2
        raise KeyError("three")

    made = Ahead(items(), depth=5)
    assert next(made) == 1 and next(made) == 2
    with pytest.raises(KeyError, match="three"):
        next(made)
    assert not threads()


def test_no_more_is_made_than_the_depth_and_the_one_in_hand():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    later = Ahead(items(), depth=2)
    assert next(later) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert made == [0, 1, 2, 3]  # one given, two ready, one that waits for a place
    later.close()
    assert not threads() and made == [0, 1, 2, 3]


def test_the_thread_ends_with_its_iterator():
    later = Ahead(iter(range(10)))
    next(later)
    assert len(threads()) == 1
    del later
    assert not threads()
