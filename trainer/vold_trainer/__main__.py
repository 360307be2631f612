"""`vold`, which is also `python -m vold_trainer`: names the extra to install where it is missing."""

from vold_proto.distribution import program


def main() -> None:
    with program("vold", "trainer"):
        from vold_trainer.cli import main

        main()


if __name__ == "__main__":
    main()
