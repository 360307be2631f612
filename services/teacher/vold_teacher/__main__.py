"""`vold-teacher`, also run as `python -m vold_teacher`. A missing library raises an error that names the extra."""

from vold_proto.distribution import exit_without_extra


def main() -> None:
    with exit_without_extra("vold-teacher", "teacher"):
        from vold_teacher.cli import main

        main()


if __name__ == "__main__":
    main()
