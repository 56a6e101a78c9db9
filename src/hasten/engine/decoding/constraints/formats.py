"""The formats of JSON Schema as languages. A format that is not known is an annotation, as the specification has it.

Exact, with these decisions: days exist (leap years too), years are 0001 to 9999, a leap second is 23:59:60 in UTC only; a
hostname's labels have at most 63 characters, its whole length is not limited; idn-hostname does not know IDNA's rules on
neighbours and lengths; a regex is any text, as whether one is valid is no regular language.
"""

from __future__ import annotations

import functools

from hasten.engine.decoding.constraints import regex
from hasten.engine.decoding.constraints.languages import EVERYTHING, Expr

_HOUR = "(?:[01][0-9]|2[0-3])"
_OFFSET = f"(?:[zZ]|[+-]{_HOUR}:[0-5][0-9])"
_TIME = f"(?:{_HOUR}:[0-5][0-9]:[0-5][0-9](?:\\.[0-9]+)?{_OFFSET}|23:59:60(?:\\.[0-9]+)?(?:[zZ]|[+-]00:00))"

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_LONG_MONTHS = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
_SHORT_MONTHS = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_DATE = f"(?:{_YEAR}-(?:{_LONG_MONTHS}|{_SHORT_MONTHS}|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"

_CLOCK = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_CALENDAR = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
_DURATION = f"P(?:{_CALENDAR}(?:{_CLOCK})?|{_CLOCK}|[0-9]+W)"

_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOSTNAME = f"{_LABEL}(?:\\.{_LABEL})*"
_WIDE = "\\p{L}\\p{N}\\u00b7\\u0375\\u05f3\\u05f4\\u200c\\u200d\\u30fb"
_IDN_LABEL = f"[{_WIDE}](?:[{_WIDE}\\p{{M}}-]*[{_WIDE}\\p{{M}}])?"
_IDN_HOSTNAME = f"{_IDN_LABEL}(?:[.\\u3002\\uff0e\\uff61]{_IDN_LABEL})*"

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = f"(?:{_BYTE}\\.){{3}}{_BYTE}"
_GROUP = "[0-9a-fA-F]{1,4}"


def _ipv6() -> str:
    """Eight groups, of which the last two may be an IPv4 address, and one run of which may be `::`."""
    tail = f"(?:{_GROUP}:{_GROUP}|{_IPV4})"
    ways = [f"(?:{_GROUP}:){{6}}{tail}"]
    for before in range(8):  # groups before the `::`; as many groups or fewer as leave one out may follow
        head = f"(?:{_GROUP}:){{{before - 1}}}{_GROUP}" if before else ""
        most = 7 - before
        ways.append(f"{head}::" + (f"(?:(?:{_GROUP}:){{0,{most - 1}}}{_GROUP})?" if most else ""))
        if most >= 2:
            ways.append(f"{head}::(?:{_GROUP}:){{0,{most - 2}}}{_IPV4}")
    return f"(?:{'|'.join(ways)})"


_IPV6 = _ipv6()


def _reference(wide: str, private: str) -> tuple[str, str]:
    """URI and relative reference of RFC 3986, or, with more characters, IRI and relative IRI of RFC 3987."""
    escaped = "%[0-9a-fA-F]{2}"
    inner = f"a-zA-Z0-9\\-._~!$&'()*+,;={wide}"
    char = f"(?:[{inner}:@]|{escaped})"
    literal = f"\\[(?:{_IPV6}|[vV][0-9a-fA-F]+\\.[a-zA-Z0-9\\-._~!$&'()*+,;=:]+)\\]"
    authority = f"(?:(?:[{inner}:]|{escaped})*@)?(?:{literal}|(?:[{inner}]|{escaped})*)(?::[0-9]*)?"
    rooted = f"/(?:{char}+(?:/{char}*)*)?"
    rest = f"(?:\\?(?:[{inner}:@/?{private}]|{escaped})*)?(?:#(?:[{inner}:@/?]|{escaped})*)?"
    hierarchy = f"//{authority}(?:/{char}*)*|{rooted}"
    without_colon = f"(?:[{inner}@]|{escaped})+(?:/{char}*)*"
    whole = f"[a-zA-Z][a-zA-Z0-9+\\-.]*:(?:{hierarchy}|{char}+(?:/{char}*)*|){rest}"
    return whole, f"(?:{hierarchy}|{without_colon}|){rest}"


_PLANES = "".join(f"\\u{{{plane:x}0000}}-\\u{{{plane:x}fffd}}" for plane in range(1, 14)) + "\\u{e1000}-\\u{efffd}"
_URI, _RELATIVE = _reference("", "")
_IRI, _RELATIVE_IRI = _reference(
    "\\u00a0-\\ud7ff\\uf900-\\ufdcf\\ufdf0-\\uffef" + _PLANES,
    "\\ue000-\\uf8ff\\u{f0000}-\\u{ffffd}\\u{100000}-\\u{10fffd}",
)

_ATOM = "[a-zA-Z0-9!#$%&'*+\\-/=?^_`{|}~%s]+"
_QUOTED = '"(?:[ !#-\\[\\]-~%s]|\\\\[ -~])*"'
_MAIL_LITERAL = f"\\[(?:{_IPV4}|[iI][pP][vV]6:{_IPV6})\\]"


def _email(wide: str, hostname: str) -> str:
    atom, quoted = _ATOM.replace("%s", wide), _QUOTED.replace("%s", wide)
    return f"(?:{atom}(?:\\.{atom})*|{quoted})@(?:{hostname}|{_MAIL_LITERAL})"


_NAME = "(?:[a-zA-Z0-9_]|%[0-9a-fA-F]{2})(?:\\.?(?:[a-zA-Z0-9_]|%[0-9a-fA-F]{2}))*(?::[1-9][0-9]{0,3}|\\*)?"
_LITERAL = "[!#$&(-;=?-\\[\\]_a-z~\\u00a0-\\ud7ff\\ue000-\\ufdcf\\ufdf0-\\uffef" + _PLANES + "]|%[0-9a-fA-F]{2}"
_URI_TEMPLATE = f"(?:{_LITERAL}|\\{{[+#./;?&=,!@|]?{_NAME}(?:,{_NAME})*\\}})*"

_POINTER = "(?:/(?:[^~/]|~[01])*)*"

_PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[tT]{_TIME}",
    "duration": _DURATION,
    "email": _email("", _HOSTNAME),
    "idn-email": _email("\\u0080-\\u{10ffff}", _IDN_HOSTNAME),
    "hostname": _HOSTNAME,
    "idn-hostname": _IDN_HOSTNAME,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uri": _URI,
    "uri-reference": f"(?:{_URI}|{_RELATIVE})",
    "iri": _IRI,
    "iri-reference": f"(?:{_IRI}|{_RELATIVE_IRI})",
    "uri-template": _URI_TEMPLATE,
    "uuid": "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
}


@functools.cache
def language(name: str) -> Expr | None:
    """The texts of a format; None: it is not known, so any text is one."""
    if name == "regex":
        return EVERYTHING
    pattern = _PATTERNS.get(name)
    return None if pattern is None else regex.parse(pattern, search=False)
