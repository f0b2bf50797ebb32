"""`python -m src.check` from a checkout: the command of open_supir.commands.check."""

from open_supir.commands.check import main

if __name__ == "__main__":
    main()
