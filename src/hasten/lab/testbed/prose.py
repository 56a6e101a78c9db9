"""Cleaning of the English texts, and questions that their paragraphs answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from hasten.lab.testbed.document import Document, chat

MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
SCENE_CHARACTERS = 2500
# Words that are repeated in a paragraph without being what it is about.
NEVER_TOPICS = set(
    """
    about after again almost always another anyone anything because become becomes before being better could doing
    during either enough every everyone everything first getting going having inside instead itself kinds large
    least little makes making maybe means might never nothing often other others people perhaps pretty probably
    quite rather really seemed seems should since someone something sometimes still taken takes themselves their
    there these thing things think those though thought through today trying turned under until usually wanted wants
    where whether which while whole without would years yourself
    """.split()  # noqa: SIM905 - a list of ninety quoted words is harder to read
)


def essays(text: str) -> Iterator[Document]:
    """Essays, each starting with a date that is glued to its first word; hard-wrapped, paragraphs run together."""
    pieces = re.split(rf"^(?=(?:{MONTHS}) \d{{4}}(?=[A-Z(\"]))", text, flags=re.MULTILINE)
    cleaned = [_unwrap_essay(piece) for piece in pieces if len(piece) > 500]
    rarity = Counter(word for paragraphs in cleaned for p in paragraphs for word in set(_words(p)))
    for number, paragraphs in enumerate(cleaned):
        origin = f"essay {number}"
        yield Document("essay", origin, "\n\n".join(paragraphs))
        for paragraph in paragraphs:
            if 200 <= len(paragraph) <= 1200:
                topic = _topic(paragraph, rarity)
                if topic:
                    yield Document("chat: essay", origin, chat(f"What do you think about {topic}?", paragraph))


def _unwrap_essay(text: str) -> list[str]:
    """The paragraphs of an essay, each on one line, without footnote marks."""
    text = re.sub(rf"^(?:{MONTHS}) \d{{4}}", "", text)
    text = re.sub(r"\s*\[\d+\]", "", text)
    text = re.sub(r"(?<=[a-z\)0-9][.?!])(?=[A-Z\"])|(?<=[a-z][.?!]\")(?=[A-Z])", "\n\n", text)
    paragraphs = (re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", text))
    return [p for p in paragraphs if len(p) > 40]


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\b[a-z]{5,}\b", text) if word not in NEVER_TOPICS]


def _topic(paragraph: str, rarity: Counter[str]) -> str | None:
    """The word a paragraph is most about: repeated here, not found in most other paragraphs."""
    counts = Counter(_words(paragraph))
    scored = [(n * n / (20 + rarity[w]), w) for w, n in counts.items() if n >= 2 and rarity[w] >= 3]
    return max(scored)[1] if scored else None


def encyclopaedia(text: str) -> Iterator[Document]:
    """Articles of wikitext-2, with its tokenisation undone and sentences with unknown words left out."""
    articles = re.split(r"^ = (?=[^=])", text, flags=re.MULTILINE)[1:]
    for article in articles:
        title, _, body = article.partition(" = \n")
        title = untokenise(title)
        paragraphs: list[str] = []
        section, section_is_new = "", True
        conversations: list[str] = []
        for line in body.splitlines():
            heading = re.fullmatch(r" (?:= )+(.+?)(?: =)+ ", line)
            if heading:
                section, section_is_new = untokenise(heading[1]), True
                if "<unk>" not in section:
                    paragraphs.append(f"## {section}")
                continue
            paragraph = _known_sentences(untokenise(line))
            if len(paragraph) < 120:
                continue
            paragraphs.append(paragraph)
            if section_is_new and "<unk>" not in title + section:
                question = f"Tell me about {title}." if not section else f"Tell me about {title}: {section}."
                conversations.append(chat(question, paragraph))
            section_is_new = False
        shown_title = f"# {title}\n\n" if "<unk>" not in title else ""
        if paragraphs:
            yield Document("encyclopaedia", title, shown_title + "\n\n".join(paragraphs))
        for conversation in conversations:
            yield Document("chat: encyclopaedia", title, conversation)


def untokenise(text: str) -> str:
    """Undo the spacing of wikitext: `1 @.@ 5 – 4 kg ( 3 lb ) " red " cat 's` -> `1.5–4 kg (3 lb) "red" cat's`."""
    text = re.sub(r" @(.)@ ", r"\1", text.strip())
    text = re.sub(r" ([,.;:?!%\)\]])", r"\1", text)
    text = re.sub(r"([\(\[$£]) ", r"\1", text)
    text = re.sub(r" (n't|'(?:s|re|ve|ll|d|m|t)\b)", r"\1", text)
    text = re.sub(r"(\d) – (\d)", r"\1–\2", text)
    text = re.sub(r'" ([^"]*?) "', r'"\1"', text)
    return re.sub(r"s ' ", "s' ", text).replace(" / ", "/")


def _known_sentences(paragraph: str) -> str:
    """A paragraph without the sentences in which a word was replaced by <unk>."""
    sentences = re.split(r"(?<=[a-z>\)\"0-9][.?!]) (?=[A-Z\"])", paragraph)
    return " ".join(s for s in sentences if "<unk>" not in s)


def plays(text: str) -> Iterator[Document]:
    """Scenes of about SCENE_CHARACTERS, cut between speeches; every third one is the answer to a request."""
    scene: list[str] = []
    number = 0
    for speech in [*text.split("\n\n"), ""]:
        if speech:
            scene.append(speech)
        if sum(map(len, scene)) > SCENE_CHARACTERS or (not speech and scene):
            origin = f"play {number}"
            yield Document("play", origin, "\n\n".join(scene))
            speakers = list(dict.fromkeys(s.partition(":")[0].title() for s in scene[:4]))
            if number % 3 == 0 and len(speakers) > 1:
                request = f"Write a scene between {speakers[0]} and {speakers[1]}."
                yield Document("chat: play", origin, chat(request, "\n\n".join(scene[:6])))
            scene, number = [], number + 1
