"""Formats of JSON Schema, against python's own parsers where there are any."""

import ipaddress
from datetime import date, timedelta
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.engine.decoding.constraints import formats
from hasten.engine.decoding.constraints.languages import EVERYTHING
from hasten.engine.decoding.constraints.native import Language

LANGUAGES = {name: Language(formats.language(name)) for name in formats._PATTERNS}


def valid(name: str, text: str) -> bool:
    return LANGUAGES[name].match(text.encode())[1]


EXAMPLES = {
    "date": (
        "2024-02-29 2000-02-29 1999-12-31 0001-01-01",
        "2023-02-29 1900-02-29 2024-13-01 2024-04-31 2024-1-01 0000-01-01 24-01-01",
    ),
    "time": (
        "12:00:00Z 23:59:59.123+05:30 23:59:60Z 00:00:00z",
        "12:00:00 24:00:00Z 12:60:00Z 12:00:60Z 12:00Z 12:00:00+24:00 12:00:00.Z",
    ),
    "date-time": (
        "1963-06-19T08:30:06.283185Z 1990-12-31t15:59:50-08:00",
        "1963-06-19_08:30:06Z 1990-02-31T15:59:59Z 2013-350T01:01:01",
    ),
    "duration": (
        "P4DT12H30M5S P4Y PT0S P0D P1M PT1M P2W P1Y2M3D",
        "PT1D P P1YT PT P2D1Y P1D2H P1W2D P1 4DT12H P1Y2W",
    ),
    "email": (
        'a@b joe.bloggs@example.com te~st@x-y.org "a(b"@example.com joe@[127.0.0.1] joe@[IPv6:::1]',
        "2962 a.@b .a@b a..b@c a@-b a@b_c a@b@c a@[300.0.0.1] @b a@",
    ),
    "idn-email": ("실례@실례.테스트 joe@example.com", "2962 a@"),
    "hostname": (
        "www.example.com xn--4gbwdl.xn--wgbh1c a 1host a-b " + "a" * 63,
        "-bad bad- a..b a_b .a a. " + "a" * 64,
    ),
    "idn-hostname": ("실례.테스트 example.com faß.de", "-a a- a..b 〮한국"),
    "ipv4": ("192.168.0.1 0.0.0.0 255.255.255.255", "256.0.0.1 1.2.3 1.2.3.4.5 01.2.3.4 0x7f.1 １.2.3.4"),
    "uri": (
        "http://foo.bar/?baz=qux#quux urn:oid:1.2 http://u:p@[::1]:80/a;b a: mailto:x@y.z ftp://x/%20 http://a/b?c?d//",
        "//foo.bar /abc \\a foo http://a[b bar,baz:x http://a/\\b :// http://a/%2 http://[12345::] a:<b> 1a:b",
    ),
    "uri-reference": ("/abc #frag ? a/b ./a:b // http://x http:// a%41 ../..", "\\a #a\\b :a 1a:b <"),
    "iri": (
        "http://ƒøø.ßår/?∂éœ=πîx#πîüx http://[2001:db8::1]",
        "/abc âππ \\a http://2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    ),
    "iri-reference": ("/âππ #ƒräg âππ", "#ƒrä\\mm \\a"),
    "uri-template": ("http://example.com/dictionary/{term:1}/{term} {+a,b*} {?q} x", "{ } {a http://x/{a b}"),
    "uuid": (
        "2EB8AA08-AA98-11EA-B4AA-73B441D16380 2eb8aa08-aa98-11ea-b4aa-73b441d16380",
        "2eb8aa08-aa98-11ea-b4aa-73b441d1638 2eb8aa08aa9811eab4aa73b441d16380",
    ),
    "json-pointer": ("/foo/bar~0/baz~1/%a / /a//b /~01", "foo #/a /~ /~2 /a~"),
    "relative-json-pointer": ("1 0/foo/bar 2/0 0# 10/a", "/foo -1/a 01/a 0## a +1"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    good, bad = EXAMPLES[name]
    assert [text for text in good.split() if not valid(name, text)] == []
    assert [text for text in bad.split() if valid(name, text)] == []
    assert not valid(name, "a\nb")


def test_every_day_exists():
    day, end = date(1896, 1, 1), date(1905, 1, 1)
    while day < end:
        assert valid("date", day.isoformat())
        day += timedelta(1)
    for year in range(1, 10_000, 7):
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        assert valid("date", f"{year:04}-02-29") == leap


IPV6 = st.lists(st.sampled_from(["1", "ff", "abcd", "12345", "", "", "0", "1.2.3.4"]), max_size=10).map(":".join)
URIS = st.sampled_from(["http", ":", "//", "/", "?", "#", "a", "%41", "[::1]", "@", ":80", " ", "é", ".."])


@given(st.ip_addresses(v=6) | IPV6)
def test_ipv6(address):
    for text in {str(address), getattr(address, "exploded", ""), str(address).upper()}:
        try:
            expected = bool(ipaddress.IPv6Address(text))
        except ValueError:
            expected = False
        assert valid("ipv6", text) == expected
        assert valid("uri", f"a://[{text}]/") == expected


@given(st.lists(URIS, max_size=8).map("".join))
def test_references_have_a_scheme_or_not(text):
    if valid("uri", text):
        assert urlsplit(text).scheme and valid("uri-reference", text) and valid("iri", text)
    if valid("uri-reference", text):
        assert valid("iri-reference", text) and text.isascii() and " " not in text
        assert valid("uri", "http://x/" + text.lstrip("/")) or "#" in text or ":" in text or "[" in text


def test_formats_that_say_nothing():
    assert formats.language("regex") == EVERYTHING
    for name in ("int32", "byte", "non-blank", "", "URI"):
        assert formats.language(name) is None
