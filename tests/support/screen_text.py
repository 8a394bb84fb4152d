"""Reads the text of a Linux framebuffer console off its picture, by the font that the kernel draws with.

The font is learnt from the picture itself: a line of known signs, printed first, says how each looks.
"""

from PIL import Image

WIDTH, HEIGHT = 8, 16
"""Of the kernel's VGA font."""
ALPHABET = "".join(map(chr, range(0x21, 0x7F)))
"""What the guest prints on a line of its own, so that read() knows the signs."""


def _cells(picture: Image.Image) -> list[list[bytes]]:
    """Returns each line's cells: which dots are lit."""
    lit = picture.convert("L").point(lambda value: 255 if value > 64 else 0)
    columns, rows = picture.width // WIDTH, picture.height // HEIGHT

    def cell(row: int, column: int) -> bytes:
        left, top = column * WIDTH, row * HEIGHT
        return lit.crop((left, top, left + WIDTH, top + HEIGHT)).tobytes()

    return [[cell(row, column) for column in range(columns)] for row in range(rows)]


def read(picture: Image.Image) -> str | None:
    """Returns the text; None if the line of known signs is not in it. Signs that are not known come as `?`."""
    cells = _cells(picture)
    blank = bytes(WIDTH * HEIGHT)
    for line in cells:
        found = line[: len(ALPHABET)]
        if len(set(found)) == len(ALPHABET) and blank not in found and set(line[len(ALPHABET) :]) == {blank}:
            font = dict(zip(found, ALPHABET, strict=True)) | {blank: " "}
            return "\n".join("".join(font.get(cell, "?") for cell in row).rstrip() for row in cells)
    return None
