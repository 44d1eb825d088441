"""The filter language: by hand, against three-valued logic, and in all stores."""

import random

import numpy as np
import pytest
import qdrant_client
from hypothesis import given, settings
from hypothesis import strategies as st

from avse.index import Index, server
from avse.index.where import matches, parse

PAYLOAD = {
    "taken": "2019-06-01T12:30:00",
    "day": "2019-06-01",
    "year": 2019,
    "folder": "2019",
    "name": "a b.jpg",
    "size": 1.5,
    "ok": True,
    "tags": ["sea", 3],
    "no": None,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year = 2019", True),
        ("year=2019.0 and folder=2019", True),
        ("folder = '2019' and not year = '2019'", True),
        ("folder > 2018", False),
        ("not folder > 2018", False),
        ("taken >= 2019-06-01 and taken < 2019-06-02", True),
        ("taken > '2019-06-01T12:30:00' or taken < '2019-06-01 12:30:00'", False),
        ("taken <= '2019-06-01T14:30:00+02:00' and taken >= '2019-06-01T12:30:00.000Z'", True),
        ("not taken > '2019-06-01T14:29:59.9+02:00'", False),
        ("day > 2019-05-31 and day <= 2019-06-01 and day = 2019-06-01", True),
        ("taken > 2018 or year > 2018-01-01 or name > 2018-01-01 or missing > 2018-01-01", False),
        ("size > 1.4 and size <= 1.5e0", True),
        ("year < 2019 or year > 2019", False),
        ("year != 2020 and missing != 2020", False),
        ("not missing = 1", False),
        ("no = null or not no = null", False),
        ("ok = true and not ok = false", True),
        ("ok = 'true' or ok = 1", False),
        ('name in ("a b.jpg", x)', True),
        ("NOT name IN ('a b.jpg')", False),
        ("tags = sea and tags = 3 and tags >= 3", True),
        ("tags != sea", False),
        ("year = 1 or year = 2019 and ok = false", False),
        ("(year = 1 or year = 2019) and not (ok = false or size = 2)", True),
        ('"year" = 2019 and name = "a \\"b"', False),
    ],
)
def test_by_hand(text, expected):
    assert matches(parse(text), PAYLOAD) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a field expected at position 1, the end found"),
        ("year", "= != < <= > >= in expected at position 5"),
        ("year >", "a number or a date expected at position 7, the end"),
        ("year == 1", "position 6, '==' found"),
        ("year > abc", "a number or a date expected at position 8, 'abc' found"),
        ("taken > 2019-13-01", "a number or a date expected at position 9"),
        ("taken > 2019-06", "a number or a date expected at position 9"),
        ("a = 'open", "a value expected at position 5"),
        ("(a = 1", r"'\)' expected at position 7"),
        ("a = 1)", "the end expected at position 6"),
        ("a = 1 b = 2", "'and', 'or' or the end expected at position 7, 'b' found"),
        ("a in ()", "a value expected at position 7"),
        ("a in 1", r"'\(' expected at position 6"),
        ("and = 1", "a field expected at position 1"),
        ("'a\"b' = 1", "without quotes"),
        ("(" * 51 + "a = 1" + ")" * 51, "at most 50 levels"),
        ("not " * 51 + "a = 1", "at most 50 levels"),
        ("a = 1 or " * 200 + "a = 1", "1805 characters, at most 1000"),
    ],
)
def test_errors_name_the_position(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


VALUES = [0, 1, -2, 2.5, 1.0, 10**12, True, False, "1", "true", "sea", "", "ü x", None]
VALUES += ["2019-06-01", "2019-06-01T12:30:00", "2019-06-01T14:30:00.5+02:00", "2019-06-31"]
FIELDS = ["a", "b", "ü x", "c.d[0]", "folder"]
WORDS = ["0", "1", "-2", "2.5", "1e12", "true", "false", "'1'", "'true'", "sea", "''", '"ü x"', "null"]
DATES = ["2019-06-01", "'2019-06-01T12:30:00Z'", "'2019-06-01T12:30:00.5'"]


MOMENTS = {  # seconds since the first of June
    "2019-06-01": 0.0, "2019-06-01T12:30:00": 45000.0, "2019-06-01T12:30:00Z": 45000.0,
    "2019-06-01T14:30:00.5+02:00": 45000.5, "2019-06-01T12:30:00.5": 45000.5,
}  # fmt: skip


def _payloads(lists):
    pick = random.Random(5)
    made = []
    for _ in range(60):
        payload = {field: pick.choice(VALUES) for field in FIELDS if pick.random() < 0.7}
        if lists:
            payload |= {"tags": [pick.choice(VALUES) for _ in range(pick.randrange(3))]} if pick.random() < 0.8 else {}
        made.append(payload)
    return made


_leaf = st.tuples(
    st.sampled_from(FIELDS),
    st.one_of(
        st.tuples(st.sampled_from(["=", "!="]), st.lists(st.sampled_from(WORDS), min_size=1, max_size=1)),
        st.tuples(st.just("in"), st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)),
        st.tuples(
            st.sampled_from(["<", "<=", ">", ">="]), st.sampled_from([*WORDS[:5], *DATES]).map(lambda word: [word])
        ),
    ),
)
_tree = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=8,
)


def _text(tree):
    if tree[0] == "not":
        return f"not ({_text(tree[1])})"
    if tree[0] in ("and", "or"):
        return "(" + f" {tree[0]} ".join(_text(part) for part in tree[1]) + ")"
    field, (op, words) = tree
    quoted = field if field.isalpha() else f"'{field}'"
    return f"{quoted} in ({', '.join(words)})" if op == "in" else f"{quoted}{op}{words[0]}"


def _truth(tree, payload):
    """Kleene's three values by another road than the parser's: None is unknown."""
    if tree[0] == "not":
        inner = _truth(tree[1], payload)
        return None if inner is None else not inner
    if tree[0] in ("and", "or"):
        parts = [_truth(part, payload) for part in tree[1]]
        decisive = tree[0] == "or"
        return decisive if decisive in parts else None if None in parts else not decisive
    field, (op, words) = tree
    value = payload.get(field)
    if value is None:
        return None
    if op in ("=", "!=", "in"):
        return any(_same(value, word) for word in words) == (op != "!=")
    if words[0] in DATES or isinstance(value, (bool, str)):
        value, limit = MOMENTS.get(value), MOMENTS.get(words[0].strip("'"))
        if value is None or limit is None:
            return None
    else:
        limit = float(words[0])
    return {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[op]


def _same(value, word):
    if isinstance(value, bool):
        return word == str(value).lower()
    if isinstance(value, str):
        return value == word.strip("'\"")
    try:
        return word[0] not in "'\"" and float(word) == value
    except ValueError:
        return False


PAYLOADS = _payloads(lists=False)


@given(_tree)
@settings(max_examples=200, deadline=None)
def test_agrees_with_three_valued_logic(tree):
    text = _text(tree)
    if len(text) <= 1000:
        node = parse(text)
        for payload in PAYLOADS:
            assert matches(node, payload) is (_truth(tree, payload) is True), (text, payload)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    shape = {"num_image_blocks": 1, "num_text_blocks": 1, "block_width": 2, "fingerprint": "x", "folder": None}
    model = type("Shape", (), shape)()
    payloads = _payloads(lists=True)
    indexes = []
    client = qdrant_client.QdrantClient(":memory:")
    patch = pytest.MonkeyPatch()
    patch.setattr(server, "connect", lambda address: client)
    for store in ("memory", "embedded", "server"):
        path = "qdrant://localhost/where" if store == "server" else tmp_path_factory.mktemp("where") / store
        index = Index.create(path, model, store=store)
        blocks = np.tile(np.array([[[0.6, 0.8]]], np.float32), (60, 1, 1))
        index.add_embeddings([f"{number:02d}" for number in range(60)], blocks, payloads)
        indexes.append(index)
    patch.undo()
    yield payloads, indexes
    for index in indexes:
        index.close()


@given(tree=_tree, field=st.sampled_from([*FIELDS, "tags"]))
@settings(max_examples=60, deadline=None)
def test_all_stores_choose_the_same(filled, tree, field):
    payloads, indexes = filled
    text = _text(tree).replace("folder", field if field.isalpha() else f"'{field}'")
    if len(text) > 1000:
        return
    expected = [f"{number:02d}" for number, payload in enumerate(payloads) if matches(parse(text), payload)]
    for index in indexes:
        hits = index.search(embedding=np.array([[0.6, 0.8]], np.float32), where=text, k=100)
        assert [hit.id for hit in hits] == expected, (index.store, text)
