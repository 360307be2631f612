"""`vold-teacher`, which is also `python -m vold_teacher`: names the extra to install where it is missing."""

from vold_proto.distribution import program


def main() -> None:
    with program("vold-teacher", "teacher"):
        from vold_teacher.cli import main

        main()


if __name__ == "__main__":
    main()
