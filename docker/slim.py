"""Take out of an environment what an image does not run: `python docker/slim.py /opt/vold`.

That is: the tools that installed it, the tests of its packages, and torch's headers and test programs, which serve
building alone. Prints what each weighed, in MB.
"""

import shutil
import sys
from pathlib import Path

TOOLS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack", "distutils-precedence.pth")


def main(environment: Path) -> None:
    (packages,) = environment.glob("lib/python3*/site-packages")
    tools = [path for name in TOOLS for path in (packages / name, *packages.glob(f"{name}-*.dist-info"))]
    tools += [*environment.glob("bin/pip*"), *environment.glob("bin/wheel*")]
    take_out("tools that install", tools)
    # No folder of this name is a package's own at the top: what is inside one belongs to it.
    take_out("tests", [path for name in ("test", "tests") for path in packages.glob(f"*/**/{name}") if path.is_dir()])
    programs = [path for path in packages.glob("torch/bin/*") if path.name != "torch_shm_manager"]
    headers = [packages / "torch/include", *packages.glob("pyarrow/include"), *packages.glob("pyarrow/src")]
    take_out("headers, programs that test", [*programs, *headers])


def take_out(what: str, paths: list[Path]) -> None:
    size = 0
    for path in paths:
        if path.is_dir():
            size += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            shutil.rmtree(path)
        elif path.exists():
            size += path.stat().st_size
            path.unlink()
    sys.stdout.write(f"{size / 1e6:7.1f} MB  {what}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
