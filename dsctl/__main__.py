"""`python -m dsctl`."""

from dsctl.cli import main

if __name__ == "__main__":
    main()
