"""`vold-verifier`, which is also `python -m vold_verifier`: names the extra to install where it is missing."""

from vold_proto.distribution import program


def main() -> None:
    with program("vold-verifier", "verifier"):
        from vold_verifier.cli import main

        main()


if __name__ == "__main__":
    main()
