"""`python -m mirror`, the same as the command `mirror`."""

from mirror.cli import main

if __name__ == "__main__":
    main(prog_name="mirror")
