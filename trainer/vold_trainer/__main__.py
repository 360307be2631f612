"""The command `vold`, also `python -m vold_trainer`. If its extra is not installed, it says which one to install."""

from vold_proto.distribution import exit_without_extra


def main() -> None:
    with exit_without_extra("vold", "trainer"):
        from vold_trainer.cli import main

        main()


if __name__ == "__main__":
    main()
