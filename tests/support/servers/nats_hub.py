"""The hub of docs/scale.md: a nats-server with an account for each system, configured exactly as the page prints it."""

import contextlib
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.servers.nats import NatsServer, running_nats
from tests.support.servers.nats_credentials import NKey

PAGE = Path(__file__).parents[3] / "docs" / "scale.md"

KEYS = {
    name: NKey() for name in ("ADMIN", "DASHBOARD", "FLEET", "REACT", "LAPTOP", "DESKTOP", "BERLIN", "BERLIN_AGENTS")
}
"""The keys of the users, by the name of the variable that the page uses."""


def configuration() -> str:
    """Return the configuration that the page prints."""
    return _block("# $ADMIN")


def configuration_for(systems: Sequence[str], password: str) -> str:
    """Return the page's configuration with an account for each system, like that of laptop.

    The system's ID is the name of the account's user, who logs in with the password.
    """
    config = configuration()
    (account,) = re.findall(r"^  laptop \{\n.*?^  \}\n", config, re.DOTALL | re.MULTILINE)
    (imported,) = re.findall(r"^ +\{service: \{account: laptop, .*\n", config, re.MULTILINE)
    copied = account.replace("{nkey: $LAPTOP}", f'{{user: laptop, password: "{password}"}}')
    for template, copy in ((account, copied), (imported, imported)):
        config = config.replace(template, "".join([template, *(copy.replace("laptop", name) for name in systems)]))
    return config


@contextlib.contextmanager
def running_hub(folder: Path, *, config: str | None = None) -> Iterator[NatsServer]:
    """Run a server with the page's configuration, or with `config`."""
    with _keys_in_environment(), running_nats(folder, config=config or configuration()) as server:
        yield server


@contextlib.contextmanager
def running_site(folder: Path) -> Iterator[tuple[NatsServer, NatsServer]]:
    """Run the page's hub with the account berlin, and its leaf node; yield both once they are connected."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    exports, account = _block('      {service: "akosha.sync.berlin'), _block("  berlin {")
    config = configuration().replace("    exports: [\n", f"    exports: [\n{exports}", 1)
    config = config.replace("accounts {\n", f"accounts {{\n{account}", 1)
    leaf = _block("# The configuration of the leaf node").replace("hub.example.org:7422", f"127.0.0.1:{port}")
    with (
        running_hub(folder / "hub", config=f'{config}\nleafnodes {{listen: "127.0.0.1:{port}"}}') as hub,
        _keys_in_environment(),
        running_nats(folder / "leaf", jetstream=False, config=leaf) as site,
    ):
        hub.logged("Leafnode connection created")
        yield hub, site


def _block(beginning: str) -> str:
    """Return the code block of the page that begins with that text."""
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```\n({re.escape(beginning)}.*?)^```", text, re.DOTALL | re.MULTILINE)
    return block


@contextlib.contextmanager
def _keys_in_environment() -> Iterator[None]:
    """Set the variables of the configuration, which the server reads from its environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, key in KEYS.items():
            patch.setenv(name, key.public)
        patch.setenv("BERLIN_SEED", KEYS["BERLIN"].seed)
        yield
