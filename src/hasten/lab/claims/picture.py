"""Plots of claims, in one style."""

from __future__ import annotations

import io
from typing import Any


def axes(count: int, height: float = 3.4) -> tuple[Any, Any]:
    """A matplotlib figure with `count` axes side by side: (figure, array of axes)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, found = plt.subplots(1, count, figsize=(4.8 * count, height), layout="constrained", squeeze=False)
    for one in found[0]:
        one.grid(True, which="major", alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    return figure, found[0]


def png(figure: Any) -> bytes:
    """The figure as a PNG of 64 colours, which is a third of the bytes of one of all; it is closed."""
    import matplotlib.pyplot as plt
    from PIL import Image

    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()
