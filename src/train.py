"""`python -m src.train` from a checkout: the command of open_supir.commands.train."""

from open_supir.commands.train import main

if __name__ == "__main__":
    main()
