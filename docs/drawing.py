"""What scripts that draw share."""

from collections.abc import Iterable


def svg(width: float, height: float, parts: Iterable[str]) -> str:
    """Return an SVG picture of these elements, on white."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="13" fill="#444">\n<rect width="100%" height="100%" fill="white"/>\n'
        f"{body}\n</svg>\n"
    )
