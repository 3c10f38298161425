"""How to install the agent. It is not published: the commands run in a clone of its repository."""

INSTALL = "in a clone: uv tool install . (or: pipx install ., or a virtual environment in your home directory)"
REINSTALL = "reinstall akosha-agent in a clone: uv tool install --reinstall . (or: pipx install --force .)"
