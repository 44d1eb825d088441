"""avse.data.clipmeta: what an SVG says of itself, and what of it is fit to be a caption."""

from __future__ import annotations

from collections import Counter

import pytest

from avse.data.clipmeta import (
    ClipMeta,
    clean,
    clean_description,
    clean_tags,
    clean_title,
    is_public_domain,
    read_metadata,
    same,
    texts_of,
    title_group,
)

SVG = """<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg"><title>not this</title><metadata>
<rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about="">
<dc:title> A  red
 &amp; white caf\u00e9 </dc:title><dc:description>With tables.</dc:description>
<dc:subject><rdf:Bag><rdf:li>house</rdf:li><rdf:li></rdf:li><rdf:li>red_house</rdf:li></rdf:Bag></dc:subject>
<dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
<dc:creator><cc:Agent><dc:title>Ann Author</dc:title></cc:Agent></dc:creator>
<cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/></cc:Work>
<cc:Work><dc:title>second</dc:title></cc:Work></rdf:RDF></metadata><path d="M 0,0"/></svg>"""


def test_metadata_is_read():
    meta = read_metadata(SVG.encode())
    assert meta.title == "A red & white caf\u00e9"
    assert meta.description == "With tables."
    assert meta.tags == ("house", "", "red_house")
    assert meta.creators == ("Ann Author",)
    assert meta.license == "http://web.resource.org/cc/PublicDomain"
    assert read_metadata(b"<svg/>") == ClipMeta()


@pytest.mark.parametrize(
    ("svg", "message"),
    [
        (b"<svg><metadata>", "broken XML"),
        (b"", "broken XML"),
        (b"not XML", "broken XML"),
        (b"<svg><x:y/></svg>", "broken XML"),
        (b'<!DOCTYPE svg [<!ENTITY lol "lol"><!ENTITY big "&lol;&lol;">]><svg>&big;</svg>', "entities.*: lol"),
        (b'<!DOCTYPE svg [<!ENTITY file SYSTEM "file:///etc/passwd">]><svg>&file;</svg>', "entities.*: file"),
    ],
)
def test_broken_and_dangerous_documents(svg, message):
    with pytest.raises(ValueError, match=message):
        read_metadata(svg)


@pytest.mark.parametrize(
    ("license", "free"),
    [
        ("", True),
        ("Public Domain", True),
        ("http://creativecommons.org/licenses/publicdomain/", True),
        ("http://creativecommons.org/licenses/GPL/2.0/", False),
    ],
)
def test_licences(license, free):
    assert is_public_domain(ClipMeta(license=license)) is free


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Clipart by Nicu Buculei - contour_chipmunk", "contour chipmunk"),
        ("arrow-down-purple", "arrow down purple"),
        ("France - Comte de Foix", "France - Comte de Foix"),
        ("Lemon (B and W)", "Lemon black and white"),
        ("sandwich_bw", "sandwich black and white"),
        ("Croissant (B &amp; W)", "Croissant black and white"),
        ("L&Atilde;&copy;zard", "L\u00e9zard"),
        ("Mikol\u00e1\x9a", "Mikol\u00e1"),
        ("help-books.svg", "help books"),
        ("ralf@example.org", ""),
        ("see http://www.example.org/x or www.example.org", "see or"),
        ("HASH(0x861a740)", ""),
        ("0x87fadcc", ""),
        ("7", ""),
        ("  ", ""),
        ("g8", ""),
        ("ok", "ok"),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected


def test_titles_lose_their_authors_but_not_one_shared_word():
    assert (
        clean_title(ClipMeta(title="Scotch Rollandin Francesco", creators=("Architetto Francesco Rollandin",)))
        == "Scotch"
    )
    assert clean_title(ClipMeta(title="Architetto Francesco", creators=("Architetto Francesco",))) == ""
    assert clean_title(ClipMeta(title="Phillips screwdriver", creators=("Jon Phillips",))) == "Phillips screwdriver"


def test_descriptions():
    assert clean_description("A dog. Created with Inkscape http://www.inkscape.org/", "x") == "A dog."
    assert clean_description("the Dog!", "dog, the") == ""
    long = clean_description("word " * 100, "x")
    assert 190 < len(long) <= 200 and long.endswith("word")


def test_tags():
    meta = ClipMeta(
        tags=(
            "",
            "hash",
            "hash(0x8a0ce70)",
            "unsorted",
            "11",
            "Tools",
            "tool",
            "red_house",
            "mo",
            "collanttuttonudoelastico50den",
        ),
        creators=("Mo",),
    )
    assert clean_tags(meta) == ("tool", "red house")


def test_texts_are_distinct_and_tags_rarest_first():
    metas = [
        ClipMeta(title="Red House", description="A small red house.", tags=("building", "house", "roof")),
        ClipMeta(title="red_house", tags=("building",)),
    ]
    counts = Counter(building=9, house=5, roof=1)
    assert texts_of(metas, counts) == ["Red House", "A small red house", "roof, house, building"]
    assert texts_of([ClipMeta(title="A house", tags=("house",))], counts) == ["A house"]
    assert texts_of([ClipMeta()], counts) == []
    many = texts_of([ClipMeta(tags=tuple(f"tag{chr(97 + i)}" for i in range(20)))], Counter())
    assert many[0].count(",") == 9


def test_sameness_and_groups():
    assert same("A  Dog, running!") == same("a dog running")
    assert title_group("LED Rectangular H (Red)") == title_group("led_rectangular_h 2") == "led rectangular h"
    assert title_group("Lemon (B and W)") == title_group("Lemon")
    assert title_group("") == title_group("42") == ""
