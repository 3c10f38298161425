"""The settings: the fields of `Settings` with their descriptions, defaults and allowed values."""

from pathlib import Path

from agent.settings import load, settings_table
from agent.settings.display import allowed
from agent.settings.model import FIELDS, PROJECT_KEYS, S3_KEYS, SECRET
from agent.settings.sources import REMOVED, SHORT_VARIABLES, variable
from agent.settings.validators import PREFIX
from docs.generator.markdown import code, codes, page, table

NOWHERE = Path("/nonexistent")
PROJECT = codes(sorted(PREFIX + key for key in PROJECT_KEYS))
SECRETS = codes(sorted(PREFIX + key for key in SECRET))
INTRODUCTION = f"""\
Each setting has a key for YAML files and an environment variable. `akosha-agent config --all` prints every setting with
its value and the source of the value. Secrets are masked.

## Sources

A source overrides those below it.

1. The command line: `--data-dir`, `--state-dir`.
2. The environment variables that are listed with each setting.
3. The short environment variables {codes(SHORT_VARIABLES.values())}.
4. The file that `--settings FILE` names.
5. The agent's own files: `credentials.yaml`, then `config.yaml`, in `~/.config/akosha-agent` (macOS:
   `~/Library/Application Support/akosha-agent`; both: `$XDG_CONFIG_HOME/akosha-agent`).
6. `settings/local.yaml`, then `settings/session-buddy.yaml`, in the working directory.
7. `~/.claude/settings/local.yaml`, then `~/.claude/settings/session-buddy.yaml`.
8. `~/.config/session-buddy/local.yaml`, then `~/.config/session-buddy/config.yaml`.
9. Session-Buddy's own settings: `log_level` and `enable_debug_mode` (the log level), `data_dir` (the data directory).
10. The AWS configuration, for the endpoint of a bucket.
11. The defaults.

In the agent's own files, the prefix `akosha_` is optional. Secrets belong in `credentials.yaml`, which must have mode
0600: {SECRETS}, the S3 keys {codes(S3_KEYS)}, and
webhooks with a secret or a login.
A secret in `config.yaml` is an error. The S3 keys are used before the AWS chain, unless the environment has
`AWS_ACCESS_KEY_ID`. Values in `credentials.yaml` are taken literally.

The files in the working directory (6) may set only {PROJECT}, and Session-Buddy's
`log_level` and `enable_debug_mode`, because a cloned repository must not decide where your memories go. A warning
names the keys that are ignored. To use all keys of such a file, name it with `--settings`.

In a YAML file, `${{VAR:-default}}` stands for an environment variable. Relative paths start at the working directory;
`~` is the home directory. Those of `config.yaml` start at its directory."""


def text() -> str:
    """Return the page."""
    rows = settings_table(load(environ={}, cwd=NOWHERE, home=NOWHERE))
    overview = table(("setting", "meaning"), [(f"[`{row.key}`](#{row.key})", row.description) for row in rows])
    blocks = [INTRODUCTION, "## Overview", overview]
    for row in rows:
        key = row.key.removeprefix(PREFIX)
        blocks += [
            f"### {row.key}",
            row.description,
            "\n".join(
                (
                    f"- Environment variable: {code(variable(key))}",
                    f"- Allowed: {_allowed(key)}",
                    f"- Default: {code(row.default) if row.default else 'empty'}",
                )
            ),
        ]
    removed = [(code(PREFIX + key), instead) for key, instead in REMOVED.items()]
    blocks += [
        "## Removed settings",
        "A removed setting that is still set has no effect. Each command prints a warning with the value used instead.",
        table(("setting", "value used instead"), removed),
    ]
    return page("Settings", "agent/settings/model.py", *blocks)


def _allowed(key: str) -> str:
    if key in SECRET or FIELDS[key].annotation is str:
        return "a text"
    return allowed(key)
