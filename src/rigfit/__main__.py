"""`python -m rigfit`, for where the command is not on the path."""

from rigfit.cli import main

if __name__ == "__main__":
    main()
