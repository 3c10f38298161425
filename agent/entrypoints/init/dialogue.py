"""The questions of `init`. A wrong answer is explained and asked again; secrets are asked without echo."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import typer

from agent.domain.errors import SettingsError
from agent.domain.memories import EMBEDDING_HINT
from agent.domain.plain_text import printable, safe_text
from agent.domain.routing import DEFAULT_HTTP_ENDPOINT
from agent.entrypoints.init.destination import Destination, akosha, bucket_at, directory, r2_endpoint
from agent.entrypoints.text_lines import Line, print_lines, rendered, screen_width
from agent.settings.endpoints import check_bucket, check_cloud_endpoint, check_http_endpoint, without_credentials
from agent.settings.validators import check_region

T = TypeVar("T")

_ENDING = len(" [Y/n]: ")
"""What the library adds to a question, besides the default."""

AKOSHA_NEEDS = (
    "An Akosha server stores only memories that have an embedding, and no databases: nothing can be restored from it.\n"
    f"For memories without an embedding: {EMBEDDING_HINT}."
)


def ask(text: str, check: Callable[[str], T], default: str | None = None) -> T:
    """Ask until `check` accepts the answer, and return its result. It may raise SettingsError or ValueError."""

    def checked(answer: str) -> T:
        try:
            return check(answer.strip())
        except SettingsError as error:
            problem = str(error)
        except ValueError as error:
            problem = safe_text(f"{without_credentials(answer.strip())} {error}")
        head = "Error: "  # that of the library
        raise typer.BadParameter(_wrapped(head + problem).removeprefix(head))

    question = _wrapped(text, less=len(default or "") + _ENDING)
    result: T = typer.prompt(question, default=default, value_proc=checked, show_default=bool(default))
    return result


def ask_secret(text: str, *, required: bool = False) -> str:
    """Ask without echo. Returns "" for an empty answer, unless it is required."""
    question = _wrapped(text, less=_ENDING)
    return str(typer.prompt(question, default=None if required else "", hide_input=True, show_default=False)).strip()


def confirm(text: str, *, default: bool) -> bool:
    """Ask a question that is answered with yes or no."""
    return typer.confirm(_wrapped(text, less=_ENDING), default=default)


def say(text: str, *, err: bool = False) -> None:
    """Print a text, wrapped between words on a terminal. Control characters are escaped."""
    print_lines([Line(line) for line in printable(text, lines=True).split("\n")], err=err)


def _wrapped(text: str, *, less: int = 0) -> str:
    """Return a text in lines that fit on a terminal; the last one leaves `less` columns to what follows it."""
    space = "_" * less
    lines = rendered([Line(text + space)], width=screen_width(sys.stdout), colours=False)
    return "\n".join(lines).removesuffix(space)


def ask_destination(cwd: Path, home: Path) -> Destination:
    """Ask where memories go, and what that needs except for secrets."""
    say("Where should your memories go?")
    for number, (choice, _) in enumerate(_CHOICES, start=1):
        print_lines([Line(f"  {number}  {choice}", indent=5)])
    return ask("Choice", _choice, default="1")(cwd, home)


def _choice(answer: str) -> "_Questions":
    if answer not in map(str, range(1, len(_CHOICES) + 1)):
        raise ValueError(f"is not a number from 1 to {len(_CHOICES)}")
    return _CHOICES[int(answer) - 1][1]


def _directory(cwd: Path, home: Path) -> Destination:
    return ask("Directory", lambda answer: directory(answer, cwd, home))


def _r2(_cwd: Path, _home: Path) -> Destination:
    return _bucket_at(ask("Account ID, or the endpoint that R2's dashboard shows", r2_endpoint))


def _aws(_cwd: Path, _home: Path) -> Destination:
    bucket = ask("Bucket", check_bucket)
    return bucket_at("", bucket, ask("Region (empty: that of the AWS configuration)", check_region, default=""))


def _s3_store(_cwd: Path, _home: Path) -> Destination:
    return _bucket_at(ask("URL of the store", lambda answer: check_cloud_endpoint(answer, plaintext=True)))


def _akosha(_cwd: Path, _home: Path) -> Destination:
    say(AKOSHA_NEEDS)
    return akosha(
        ask("URL of the server", lambda url: check_http_endpoint(url, plaintext=True), default=DEFAULT_HTTP_ENDPOINT)
    )


def _bucket_at(url: str) -> Destination:
    in_url = urlsplit(url).path.strip("/")
    return bucket_at(url, "" if in_url else ask("Bucket", check_bucket))


_Questions = Callable[[Path, Path], Destination]
_CHOICES: tuple[tuple[str, _Questions], ...] = (
    ("a folder, a NAS or a USB disk", _directory),
    ("Cloudflare R2", _r2),
    ("Amazon S3", _aws),
    ("MinIO or another S3 store", _s3_store),
    ("only an Akosha server, without any storage", _akosha),
)
