"""`python -m vold_verifier` is `vold-verifier`."""

from vold_verifier.cli import main

if __name__ == "__main__":
    main()
