"""`python -m src.evaluate` from a checkout: the command of open_supir.commands.evaluate."""

from open_supir.commands.evaluate import main

if __name__ == "__main__":
    main()
