"""What the agent was configured with changes while it runs: settings, credentials, certificates."""

import os
import random
import shutil
import signal
from collections.abc import Mapping

from aiohttp import web

from tests.campaign.faults.fault import Fault
from tests.campaign.world import World
from tests.support.servers.faulty_proxy import Forward, refuse
from tests.support.servers.s3 import Authority, Rclone

VALID: Mapping[str, tuple[object, object]] = {
    "agent_quiet_seconds": (0.1, 0.2),
    "agent_rescan_seconds": (1, 2),
    "agent_log_level": ("DEBUG", "INFO"),
    "agent_prune": ("true", "false"),
    "agent_max_upload_kib_per_s": (100_000, 0),
}
INVALID = (
    "akosha_agent_quiet_seconds: soon",
    "akosha_agent_rescan_seconds: [1, 2",
    "akosha_cloud_endpoint: ftp://127.0.0.1",
    "akosha_agent_nats_ca_file: /nowhere/ca.pem",
)


class SettingsChanged(Fault):
    """The settings file is changed, and the agent gets SIGHUP: invalid settings are refused, then valid ones used."""

    row = "Settings changed, invalid and valid"
    rounds = 10
    bar = "invalid settings are refused, valid ones used"

    def prepare(self, world: World) -> None:
        world.machine.set(**dict.fromkeys(VALID), cloud_endpoint=None)
        self.values = {"cloud_endpoint": world.target.settings["cloud_endpoint"]}
        self.values |= {name: values[0] for name, values in VALID.items()}
        self.file = world.machine.home / ".claude" / "settings" / "local.yaml"
        self.file.parent.mkdir(parents=True)
        self._write()

    def strike(self, world: World, rng: random.Random) -> None:
        self._reload(world, rng.choice(INVALID))
        world.said("the previous settings stay in effect")
        world.commit()
        name = rng.choice([*VALID])
        (self.values[name],) = {*VALID[name]} - {self.values[name]}
        self._reload(world)
        world.said(f'"keys": ["akosha_{name}"]')

    def _write(self, *more: str) -> None:
        """Write the settings file; where a key is there twice, the last one counts."""
        self.file.write_text("\n".join([*(f"akosha_{name}: {value}" for name, value in self.values.items()), *more]))

    def _reload(self, world: World, *more: str) -> None:
        self._write(*more)
        os.kill(world.pid, signal.SIGHUP)


class CredentialsReplaced(Fault):
    """The S3 server accepts other credentials only; the AWS credentials file gets them when the agent has said so."""

    row = "Credentials rotated, expired or removed"
    rounds = 10
    bar = "says what to renew; goes on without a restart"
    typical_seconds = 7.0
    target = "s3"

    def prepare(self, world: World) -> None:
        assert world.target.proxy is not None
        self.file, self.issued = world.folder / "credentials", 0
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            del world.machine.environ[name]
        world.machine.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(self.file)
        self._issue_key(world)
        self._issue_token(world)
        self.heal(world, world.rng)
        world.target.proxy.on("", self._answer)

    def strike(self, world: World, rng: random.Random) -> None:
        how = rng.choice(("rotated", "expired", "removed"))
        if how != "expired":
            self._issue_key(world)
        self._issue_token(world)
        if how == "removed":
            self.file.unlink()
        world.commit()
        cures = {
            "rotated": "correct AWS_ACCESS_KEY_ID",
            "expired": "the credentials have expired: renew AWS_ACCESS_KEY_ID",
            "removed": "set AWS_ACCESS_KEY_ID",
        }
        world.said(cures[how])
        world.warns("credentials_refused_cloud")

    def heal(self, world: World, rng: random.Random) -> None:
        lines = (f"aws_access_key_id = {self.key}", f"aws_secret_access_key = {self.secret}")
        self.file.write_text("\n".join(["[default]", *lines, f"aws_session_token = {self.token}\n"]))

    def _issue_key(self, world: World) -> None:
        self.issued += 1
        self.key, self.secret = f"AKIATEST{self.issued:012}", f"canary-secret-{self.issued:026}"
        world.machine.secrets += (self.secret,)

    def _issue_token(self, world: World) -> None:
        self.issued += 1
        self.token = f"canary-token-{self.issued:027}"
        world.machine.secrets += (self.token,)

    async def _answer(self, request: web.Request, forward: Forward) -> web.StreamResponse:
        if f"Credential={self.key}/" not in request.headers["Authorization"]:
            return await refuse(403, "InvalidAccessKeyId")(request, forward)
        if request.headers.get("X-Amz-Security-Token") != self.token:
            return await refuse(400, "ExpiredToken")(request, forward)
        return await forward()


class AuthorityReplaced(Fault):
    """The S3 server gets a certificate of another CA; the CA file is replaced when the agent has said so."""

    row = "CA of the S3 server replaced"
    rounds = 10
    bar = "names the setting; goes on without a restart"
    typical_seconds = 7.0
    target = "rclone-tls"

    def prepare(self, world: World) -> None:
        assert isinstance(world.target.server, Rclone)
        self.rclone, self.trusted = world.target.server, world.folder / "trusted.pem"
        assert self.rclone.server.ca is not None
        self.ca = self.rclone.server.ca
        self.heal(world, world.rng)
        world.machine.environ["AWS_CA_BUNDLE"] = str(self.trusted)

    def strike(self, world: World, rng: random.Random) -> None:
        self.rclone.kill()
        Authority(self.ca.parent)
        self.rclone.start()
        world.commit()
        world.said("set AWS_CA_BUNDLE to the certificate file")

    def heal(self, world: World, rng: random.Random) -> None:
        shutil.copy(self.ca, self.trusted)
