"""`python -m mobilemoe`: the command where its script is not on the path."""

from mobilemoe.cli.main import main

if __name__ == "__main__":
    main()
