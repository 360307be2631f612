"""Install a set of packages from its lock, and nothing that the lock does not name, beside this interpreter.

    python locks/install.py dev
    python locks/install.py trainer -- --no-cache-dir      what follows `--` goes to pip

What torch's CUDA build asks for is installed only beside such a build: with a CPU wheel of torch within pip's reach
(`--find-links`, an index), nothing of CUDA comes along, but what `--with` names: triton runs interpreted on a CPU too.
Needs nothing but pip.
"""

import argparse
import subprocess
import sys
from importlib import metadata
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

from lock import CUDA, SETS, cuda_lock  # noqa: E402  (beside this file; neither is a package)


def install(what: list[str], arguments: list[str]) -> None:
    """Raises SystemExit with pip's status where pip fails."""
    # Without build isolation: an isolated build takes the newest build tools, whatever the lock says.
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    status = subprocess.call([*pip, *arguments, *what])
    if status:
        raise SystemExit(status)


def torch_is_for_cuda() -> bool:
    """Whether the environment's torch is a build that asks for CUDA's packages."""
    try:
        return any(CUDA.match(requirement) for requirement in metadata.requires("torch") or [])
    except metadata.PackageNotFoundError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", help=f"of {', '.join(SETS)}; or a file of pins")
    parser.add_argument("--cuda", choices=["auto", "always", "never"], default="auto", help="CUDA's pins too")
    parser.add_argument("--with", action="append", default=[], dest="named", help="one of CUDA's pins, in any case")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    asked, pip = parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]
    lock = SETS[asked.set].lock if asked.set in SETS else Path(asked.set).resolve()
    if not lock.is_file():
        parser.error(f"no set and no file {asked.set!r}: sets are {', '.join(SETS)}")
    further = cuda_lock(lock)
    if (asked.cuda == "always" or asked.named) and not further.exists():
        parser.error(f"--cuda always, --with: there are no pins for CUDA beside {lock.name}, in {further.name}")
    install(["--requirement", str(FOLDER / "build.txt")], pip)
    install(["--requirement", str(lock)], pip)
    if further.exists() and (asked.cuda == "always" or (asked.cuda == "auto" and torch_is_for_cuda())):
        install(["--requirement", str(further)], pip)
    elif asked.named:
        install([*asked.named, "--constraint", str(further)], pip)


if __name__ == "__main__":
    main()
