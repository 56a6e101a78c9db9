"""Sorts of SQL queries over one table, and the questions that ask for them."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.lab.testbed.tasks.base import Wordings


@dataclass(frozen=True)
class Pattern:
    """A sort of query with the questions that ask for it. {key}: the first column, {category}, {number}: a column of
    that sort, {word}: a value of {category}, {limit}: a number to compare {number} with,
    {entry}: a value of {key}."""

    query: str
    questions: Wordings


def _pattern(query: str, train: str, held_out: str) -> Pattern:
    return Pattern(query, Wordings(tuple(train.split("; ")), tuple(held_out.split("; "))))


PATTERNS = (
    _pattern(
        "SELECT COUNT(*) FROM {table} WHERE {number} > {limit}",
        "How many {table} have a {number} above {limit}?; Count the {table} with a {number} over {limit}.; "
        "How many {table} have a {number} of more than {limit}?; Count the {table} whose {number} is greater than {limit}.",
        "How many {table} have a {number} greater than {limit}?; Count the {table} with a {number} above {limit}.",
    ),
    _pattern(
        "SELECT COUNT(*) FROM {table} WHERE {number} < {limit}",
        "How many {table} have a {number} below {limit}?; Count the {table} with a {number} under {limit}.; "
        "How many {table} have a {number} of less than {limit}?; Count the {table} whose {number} is smaller than {limit}.",
        "How many {table} have a {number} smaller than {limit}?; Count the {table} with a {number} below {limit}.",
    ),
    _pattern(
        "SELECT COUNT(*) FROM {table} WHERE {category} = '{word}'",
        "How many {table} have the {category} {word}?; Count the {table} with {category} {word}.; "
        "How many {table} are there with {category} {word}?; Count the {table} whose {category} is {word}.",
        "How many {table} have {word} as the {category}?; Count the {table} of {category} {word}.",
    ),
    _pattern(
        "SELECT SUM({number}) FROM {table}",
        "What is the total {number}?; What is the sum of the {number}?; Add up the {number} of all {table}.; "
        "Give the total {number}.",
        "What is the total {number} of all {table}?; Sum up the {number}.",
    ),
    _pattern(
        "SELECT SUM({number}) FROM {table} WHERE {category} = '{word}'",
        "What is the total {number} where the {category} is {word}?; What is the sum of the {number} for {category} {word}?; "
        "Add up the {number} of the {table} with {category} {word}.; Give the total {number} for {category} {word}.",
        "What is the total {number} for {category} {word}?; Sum up the {number} where the {category} is {word}.",
    ),
    _pattern(
        "SELECT MAX({number}) FROM {table}",
        "What is the highest {number}?; What is the largest {number}?; Give the highest {number}.; "
        "What is the greatest {number}?",
        "What is the maximum {number}?; Give the largest {number}.",
    ),
    _pattern(
        "SELECT MIN({number}) FROM {table}",
        "What is the lowest {number}?; What is the smallest {number}?; Give the lowest {number}.; What is the least {number}?",
        "What is the minimum {number}?; Give the smallest {number}.",
    ),
    _pattern(
        "SELECT AVG({number}) FROM {table}",
        "What is the average {number}?; Give the average {number}.; What is the average {number} of the {table}?; "
        "Compute the average {number}.",
        "What is the mean {number}?; Tell me the average {number}.",
    ),
    _pattern(
        "SELECT {key} FROM {table} ORDER BY {number} DESC LIMIT 1",
        "Which {key} has the highest {number}?; Which {key} has the largest {number}?; "
        "Give the {key} with the highest {number}.; "
        "Give the {key} of the greatest {number}.",
        "What {key} has the highest {number}?; Give the {key} with the largest {number}.",
    ),
    _pattern(
        "SELECT {key} FROM {table} ORDER BY {number} LIMIT 1",
        "Which {key} has the lowest {number}?; Which {key} has the smallest {number}?; "
        "Give the {key} with the lowest {number}.; "
        "Give the {key} of the least {number}.",
        "What {key} has the lowest {number}?; Give the {key} with the smallest {number}.",
    ),
    _pattern(
        "SELECT {key} FROM {table} WHERE {category} = '{word}'",
        "List each {key} with the {category} {word}.; List each {key} whose {category} is {word}.; "
        "Show each {key} where the {category} "
        "is {word}.; Show each {key} with {category} {word}.",
        "Show each {key} whose {category} is {word}.; List each {key} where the {category} is {word}.",
    ),
    _pattern(
        "SELECT {key} FROM {table} WHERE {number} > {limit}",
        "List each {key} with a {number} above {limit}.; List each {key} whose {number} is greater than {limit}.; "
        "Show each {key} with a {number} of more than {limit}.; Show each {key} with a {number} over {limit}.",
        "Show each {key} with a {number} above {limit}.; List each {key} with a {number} greater than {limit}.",
    ),
    _pattern(
        "SELECT {number} FROM {table} WHERE {key} = '{entry}'",
        "What is the {number} of {entry}?; Give the {number} of {entry}.; Which {number} does {entry} have?; "
        "What is the {number} for {entry}?",
        "Tell me the {number} of {entry}.; What {number} does {entry} have?",
    ),
)  # fmt: skip
