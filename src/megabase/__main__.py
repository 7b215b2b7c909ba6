"""``python -m megabase``: the command line, where the script is not on the path."""

from megabase.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
