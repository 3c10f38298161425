"""`make fuzz MINUTES=30`: generate input for every fuzz target in turn, with a random seed; print what fails.

Hypothesis generates the input and reduces what fails. It keeps failing examples in `.hypothesis/examples`, and tries
them first in the next run. If atheris can be imported, it gets half of each target's time: it changes input as the code
that it reaches suggests, and keeps its corpus in `.hypothesis/atheris`. `--only TEXT`: targets with that in their name.
"""

import argparse
import random
import subprocess
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".hypothesis"

FIRST_EXAMPLES = 100
MOST_EXAMPLES = 5000
FIRST_BYTES = (256, 512, 1024, 4096) * 5
"""Sizes of the first inputs of atheris."""

LONGEST_LINE = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--guided", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.guided is not None:
        return guided(arguments.guided, seconds=arguments.minutes * 60, seed=arguments.seed)

    from tests.fuzz.targets import TARGETS

    targets = [target for target in TARGETS if arguments.only in target.name]
    seconds = arguments.minutes * 60 / len(targets)
    print(f"{len(targets)} targets, {seconds:.0f} s each, --seed {arguments.seed}", flush=True)
    if not (has_atheris := find_spec("atheris") is not None):
        print("atheris is not installed: hypothesis gets all of the time", flush=True)
    failed = []
    for target in targets:
        found = True
        if has_atheris:
            found = run_guided(target.name, seconds / 2, arguments.seed)
        count, passed = generated(target, seconds / 2 if has_atheris else seconds, arguments.seed)
        print(f"{target.name}: {count} examples, {'passed' if passed and found else 'FAILED'}", flush=True)
        if not (passed and found):
            failed.append(target.name)
    return 1 if failed else 0


def generated(target, seconds: float, seed: int) -> tuple[int, bool]:
    """Read generated examples of a target for so long; return their number, and whether all kept the promise."""
    from hypothesis import HealthCheck, Phase, seed as with_seed, settings
    from hypothesis.database import DirectoryBasedExampleDatabase
    from structlog.testing import capture_logs

    quiet = settings(
        database=DirectoryBasedExampleDatabase(KEPT / "examples"),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
        print_blob=False,
    )
    started, done, most = time.monotonic(), 0, FIRST_EXAMPLES
    with capture_logs(), target.reader() as read:
        while (left := started + seconds - time.monotonic()) > 0:
            begun = time.monotonic()
            try:
                with_seed(f"{seed} {target.name} {done}")(target.test(read, settings(quiet, max_examples=most)))()
            except Exception as error:  # noqa: BLE001 - any exception is a finding
                show(error)
                return done + most, False
            done += most
            rate = most / max(time.monotonic() - begun, 1e-3)
            most = max(1, min(MOST_EXAMPLES, int(left * rate / 2)))
    return done, True


def show(error: BaseException) -> None:
    """Print an error and the example that causes it, without the frames of Hypothesis."""
    for one in error.exceptions if isinstance(error, ExceptionGroup) else [error]:
        frames = [frame for frame in traceback.extract_tb(one.__traceback__) if "/hypothesis/" not in frame.filename]
        lines = [*traceback.format_list(frames[-6:]), *traceback.format_exception_only(one)]
        print("\n".join(line[:LONGEST_LINE] for text in lines for line in text.splitlines()), flush=True)


def run_guided(name: str, seconds: float, seed: int) -> bool:
    """Run atheris in a process of its own, which it ends itself. Return whether every input kept the promise."""
    corpus = KEPT / "atheris" / name.replace(" ", "_")
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        # Hypothesis makes an example of the bytes: of the few with which atheris would start, it makes none.
        for number, size in enumerate(FIRST_BYTES):
            (corpus / f"first-{number}").write_bytes(random.Random(f"{seed} {number}").randbytes(size))
    command = [sys.executable, __file__, "--guided", name, "--minutes", str(seconds / 60), "--seed", str(seed)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if result.returncode:
        print("\n".join(line[:LONGEST_LINE] for line in (result.stdout + result.stderr).splitlines()[-60:]), flush=True)
    return result.returncode == 0


def guided(name: str, *, seconds: float, seed: int) -> int:
    """Let atheris change the input of one target, guided by the code of the agent that each input reaches."""
    import atheris

    with atheris.instrument_imports(include=["agent"]):
        from tests.fuzz.targets import TARGETS
    from hypothesis import HealthCheck, settings
    from hypothesis.database import DirectoryBasedExampleDatabase

    target = next(target for target in TARGETS if target.name == name)
    folder = KEPT / "atheris" / name.replace(" ", "_")
    options = [
        f"-max_total_time={seconds:.0f}",
        f"-seed={seed}",
        f"-artifact_prefix={folder}.",
        "-max_len=8192",
        "-len_control=0",
    ]
    quiet = settings(
        database=DirectoryBasedExampleDatabase(KEPT / "examples"),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with target.reader() as read:
        atheris.Setup([sys.argv[0], *options, str(folder)], target.test(read, quiet).hypothesis.fuzz_one_input)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
