"""`vold-verifier` and `python -m vold_verifier`: names the extra to install if a dependency is missing."""

from vold_proto.distribution import exit_without_extra


def main() -> None:
    with exit_without_extra("vold-verifier", "verifier"):
        from vold_verifier.cli import main

        main()


if __name__ == "__main__":
    main()
