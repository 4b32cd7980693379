"""`python -m palate`, where the script is not installed."""

from palate.cli import main

if __name__ == "__main__":
    main()
