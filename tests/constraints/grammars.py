"""Small grammars of all kinds, written by hand, and texts of them."""

from __future__ import annotations

from hasten.engine.decoding.constraints.grammar import Act, Form, Grammar, Plan, Row, Terminal
from hasten.engine.decoding.constraints.languages import (
    ANY,
    EVERYTHING,
    both,
    but,
    cat,
    chars,
    optional,
    repeat,
    text,
    without,
    words,
)

DIGIT = chars((48, 57))
BLANKS = repeat(chars((9, 10), (13, 13), (32, 32)), 0, 2)
NUMBER = cat(optional(text("-")), repeat(DIGIT, 1), optional(cat(text("."), repeat(DIGIT, 1))))
NAME = cat(chars((97, 122)), repeat(chars((97, 122), (48, 57))))


def rules(
    start: str, productions: str, terminals: dict[str, Terminal], plans: tuple[Plan, ...] = (), longest: bool = False
) -> Grammar:
    """`productions`: "left: symbol symbol | symbol", one a line; what is no terminal's name is a nonterminal."""
    grammar = Grammar(longest=longest, plans=list(plans))
    symbols = {name: grammar.terminal(one) for name, one in terminals.items()}
    lines = [line.split(":", 1) for line in productions.strip().splitlines()]
    for left, _ in lines:
        symbols.setdefault(left.strip(), grammar.nonterminal(left.strip()))
    for left, right in lines:
        for option in right.split(" | "):
            grammar.produce(symbols[left.strip()], *[symbols[name] for name in option.split()])
    grammar.start = symbols[start]
    return grammar


def signs(texts: str) -> dict[str, Terminal]:
    return {sign: Terminal(text(sign), name=sign) for sign in texts.split()}


def arithmetic(left: bool) -> Grammar:
    lists = "e: e + t | e - t | t\nt: t * f | f" if left else "e: t + e | t - e | t\nt: f * t | f"
    return rules("e", lists + "\nf: number | ( e )", {**signs("+ - * ( )"), "number": Terminal(NUMBER, name="number")})


def json(left: bool) -> Grammar:
    lists = (
        "members: member | members , member\nitems: v | items , v"
        if left
        else "members: member | member , members\nitems: v | v , items"
    )
    return rules(
        "v",
        "v: { } | { members } | [ ] | [ items ] | string | number | word\nmember: string : v\n" + lists,
        {
            **signs("{ } [ ]"),
            ",": Terminal(cat(BLANKS, text(","), BLANKS), name=","),
            ":": Terminal(cat(BLANKS, text(":"), BLANKS), name=":"),
            "string": Terminal(EVERYTHING, Form.ANY_STRING, name="string"),
            "number": Terminal(NUMBER, name="number"),
            "word": Terminal(words(["true", "false", "null"]), name="word"),
        },
    )


def dyck() -> Grammar:
    return rules("s", "s: s p | p\np: ( ) | ( s ) | [ ] | [ s ] | <a> </a> | <a> s </a>", signs("( ) [ ] <a> </a>"))


def palindromes() -> Grammar:
    return rules("s", "s: a s a | b s b | a | b | a a | b b", signs("a b"))


def ambiguous() -> Grammar:
    return rules("s", "s: s + s | s s | a | u\nu: w\nw: u | b", signs("+ a b"))


def listen(longest: bool) -> Grammar:
    return rules(
        "s",
        "s: verb ed | verb | s blank verb",
        {"verb": Terminal(words(["list", "listen"]), name="verb"), "ed": Terminal(text("ed")), "blank": Terminal(text(" "))},
        longest=longest,
    )


def keywords(longest: bool) -> Grammar:
    return rules(
        "s",
        "s: if name then name | name = name | s ; if name then name",
        {
            "if": Terminal(cat(text("if"), text(" ") if not longest else optional(text(" "))), priority=1, name="if"),
            "then": Terminal(text(" then "), name="then"),
            "name": Terminal(NAME, name="name"),
            **signs("= ;"),
        },
        longest=longest,
    )


def marked() -> Grammar:
    """Special tokens around numbers."""
    return rules(
        "s",
        "s: begin list end | number\nlist: number | list , number | list begin number",
        {
            "begin": Terminal(text("x"), act=Act.TOKEN, argument=1),
            "end": Terminal(text("x"), act=Act.TOKEN, argument=2),
            "number": Terminal(NUMBER, name="number"),
            **signs(","),
        },
    )


def optional_text() -> Grammar:
    return rules("s", "s: all", {"all": Terminal(repeat(words(["ab", "c"])), name="all")})


STRUCTURE = {
    ",": Terminal(cat(BLANKS, text(","), BLANKS), act=Act.COMMA, name=","),
    ":": Terminal(cat(BLANKS, text(":"), BLANKS), name=":"),
    "}": Terminal(cat(BLANKS, text("}")), act=Act.CLOSE, name="}"),
    "]": Terminal(cat(BLANKS, text("]")), act=Act.CLOSE, name="]"),
    "{}": Terminal(text("}"), act=Act.EMPTY, name="}"),
    "[]": Terminal(text("]"), act=Act.EMPTY, name="]"),
    "number": Terminal(NUMBER, name="number"),
    "string": Terminal(EVERYTHING, Form.ANY_STRING, name="string"),
    "word": Terminal(words(["true", "false", "null"]), name="word"),
}


def opening(sign: str, plan: int, witness: int = -1) -> Terminal:
    return Terminal(cat(text(sign), BLANKS), act=Act.OPEN, argument=plan, witness=witness, name=sign)


def key(name: str, bit: int, witness: int = -1) -> Terminal:
    return Terminal(text(name), Form.STRING, Act.KEY, bit, witness, name=name)


OTHER_KEYS = Terminal(both(EVERYTHING, without(words(["a", "b", "ab"]))), Form.STRING, Act.KEY, -1, distinct=True, name="other")


def objects(rows: tuple[Row, ...], other: bool = True, ordered: bool = False) -> Grammar:
    """Keys a, b and ab in any order, others where wanted; values are numbers, or such an object again."""
    keys = {"a": key("a", 0), "b": key("b", 1), "ab": key("ab", 2), **({"other": OTHER_KEYS} if other else {})}
    return rules(
        "o",
        f"""o: {{ {{}} | {{ m }}
            m: p | m , p
            p: a : number | b : o | ab : string {"| other : v" if other else ""}
            v: string | number | o""",
        {**STRUCTURE, **keys, "{": opening("{", 0)},
        (Plan(False, rows, bits=3, ordered=ordered),),
    )


def arrays(rows: tuple[Row, ...], witnesses: int = 0, unique: bool = False) -> Grammar:
    """Items are scalars, such an array again or {"a": item}; with witnesses, `true` is the one that is looked for."""
    if witnesses:
        productions = """v: number | string
            l: [ [] | [ v i ] | [ v ] | [w word ] | [w word i ]
            i: , v | ,w word | i , v | i ,w word"""
    else:
        productions = "l: [ [] | [ i ]\ni: v | i , v\nv: number | string | word | l | { k : v }"
    terminals = {**STRUCTURE, "[": opening("[", 0), "{": opening("{", 1), "k": key("a", 0)}
    if witnesses:
        terminals |= {
            "[w": opening("[", 0, 0),
            ",w": Terminal(cat(BLANKS, text(","), BLANKS), act=Act.COMMA, witness=0, name=","),
            "word": Terminal(text("true"), name="word"),
        }
    return rules(
        "l", productions, terminals, (Plan(True, rows, witnesses=witnesses, unique=unique), Plan(False, (Row(),), bits=1))
    )


def two_objects() -> Grammar:
    """Alternatives that only their ends tell apart: several readings of the same bytes."""
    return rules(
        "o",
        """o: {1 m1 } | {2 m2 }
           m1: p1 | m1 , p1
           m2: p2 | m2 , p2
           p1: kind1 : one | a1 : number
           p2: kind2 : two | a2 : string | a2 : o""",
        {
            **STRUCTURE, "{1": opening("{", 0), "{2": opening("{", 1), "kind1": key("kind", 0), "kind2": key("kind", 0),
            "a1": key("a", 1), "a2": key("a", 1),
            "one": Terminal(text("one"), Form.STRING), "two": Terminal(text("on"), Form.STRING),
        },
        (Plan(False, (Row(frozenset({0, 1})),), bits=2), Plan(False, (Row(frozenset({0})),), bits=2)),
    )  # fmt: skip


def counted(least: int, most: int | None, form: Form = Form.ANY_STRING) -> Grammar:
    language = EVERYTHING if form == Form.ANY_STRING else repeat(but(chars((97, 98))))
    return rules(
        "l",
        "l: s | l , s | l , plain",
        {
            "s": Terminal(language, form, least=least, most=most, name="counted"),
            "plain": Terminal(repeat(ANY, 0, 1), Form.STRING, name="short"),
            ",": Terminal(text(",")),
        },
    )


ROWS = {
    "any": (Row(),),
    "required": (Row(frozenset({0, 2})),),
    "either": (Row(frozenset({0}), frozenset({1})), Row(frozenset({1}), frozenset({0}), most=2)),
    "few": (Row(frozenset({1}), least=2, most=3),),
}

GRAMMARS: dict[str, Grammar] = {
    "arithmetic": arithmetic(True),
    "arithmetic right": arithmetic(False),
    "json": json(True),
    "json right": json(False),
    "dyck": dyck(),
    "palindromes": palindromes(),
    "ambiguous": ambiguous(),
    "listen": listen(False),
    "listen longest": listen(True),
    "keywords": keywords(False),
    "keywords longest": keywords(True),
    "marked": marked(),
    "optional text": optional_text(),
    **{f"objects {name}": objects(rows) for name, rows in ROWS.items()},
    "objects closed": objects(ROWS["required"], other=False),
    "objects ordered": objects(ROWS["required"], ordered=True),
    "arrays": arrays((Row(),)),
    "arrays counted": arrays((Row(least=2, most=3),)),
    "arrays counts": arrays((Row(most=1), Row(least=3, most=4))),
    "arrays empty": arrays((Row(most=0),)),
    "arrays witness": arrays((Row(least=1, most=3),), witnesses=1),
    "arrays unique": arrays((Row(),), unique=True),
    "two objects": two_objects(),
    "counted": counted(2, 3),
    "counted least": counted(3, None),
    "counted most": counted(0, 2, Form.STRING),
}
