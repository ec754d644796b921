"""Ask the package index for wheels of all that README's commands install, for every Python that is supported.

    python -m tests.architecture.wheels

Nothing is installed. The ranges are those of pyproject.toml; markers are those of this Python, whatever the version
asked for. The exit code is 1 where a wheel is missing, and 0 where no index is reached, which is said.
"""

import subprocess
import sys
import tempfile

from tests.architecture.test_installation import BUILT, EXTRAS, PROJECT, PYTHONS

PATIENCE_S = 300


def resolved(folder: str, *arguments: str) -> str | None:
    """Ask pip for wheels of requirements and of all that they need; return what it says of those that are missing."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
    options = ["--quiet", "--retries", "0", "--timeout", "15", "--disable-pip-version-check", "--no-input"]
    try:
        done = subprocess.run(
            [*command, *options, "--target", folder, *arguments],
            capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=folder,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"the package index has not answered within {PATIENCE_S} s: {arguments}")
        return None
    return done.stderr if done.returncode else None


def main() -> int:
    """See the module."""
    with tempfile.TemporaryDirectory() as folder:
        unreached = resolved(folder, "--no-deps", "pyyaml")
        if unreached is not None:
            print(f"no package index is reached: {unreached.strip().splitlines()[-1:]}")
            return 0
        wanted = [
            *PROJECT["dependencies"],
            *(line for name, lines in EXTRAS.items() if name not in (*BUILT, "all") for line in lines),
        ]
        missing = {version: resolved(folder, "--python-version", version, *wanted) for version in PYTHONS}
    for version, said in missing.items():
        print(f"Python {version}: {'all wheels are there' if said is None else said}")
    return int(any(said is not None for said in missing.values()))


if __name__ == "__main__":
    sys.exit(main())
