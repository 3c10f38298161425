"""The static files of the page, and the headers that they are served with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

INDEX = "index.html"

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""The script of the page can load from, and send to, nothing but this server; no other page can frame or open it."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file of the page, and the value of its Content-Type."""

    content_type: str
    body: bytes


def read_files() -> Mapping[str, StaticFile]:
    """Return all files by their paths on the server. Blocks."""
    folder = Path(__file__).parent / "static"
    files = [path for path in folder.iterdir() if path.suffix in _TYPES]
    return {
        f"/{'' if path.name == INDEX else path.name}": StaticFile(_TYPES[path.suffix], path.read_bytes())
        for path in files
    }
