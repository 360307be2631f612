"""`python -m vold_teacher` is `vold-teacher`."""

from vold_teacher.cli import main

main()
