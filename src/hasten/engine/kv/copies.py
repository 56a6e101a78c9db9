"""Copies that stay behind: what of a running sequence's KV lies in the slower tier too."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.engine.kv.view import View


@dataclass(slots=True)
class Copy:
    """A copy that was good when the sequence came back. `of`: the place in the slower tier by pool block, in the order of the
    view; a block without a place is sent again. `length`: entries of the view from there on were written since."""

    of: dict[int, int]
    length: int

    def good(self, view: View) -> set[int]:
        """The blocks of `view` that lie there as they are here: all their entries were copied and none was written since."""
        runs = view.runs
        written = set(runs[runs[:, 2].cumsum() > self.length, 0].tolist())
        return {block for block in self.of if block in view.blocks and block not in written}

    def cut(self, length: int) -> None:
        """Entries from `length` on are, or will be, written again."""
        self.length = min(self.length, length)

    def lose(self, count: int) -> list[int]:
        """Give up the places of up to `count` blocks, the last of the view first: what is longest lived is kept longest."""
        return [self.of.popitem()[1] for _ in range(min(count, len(self.of)))]

    def prune(self, view: View) -> list[int]:
        """Give up the places of blocks that `view` has left."""
        return [self.of.pop(block) for block in list(self.of) if block not in view.blocks]
