"""`python -m src.download` from a checkout: the command of open_supir.commands.download."""

from open_supir.commands.download import main

if __name__ == "__main__":
    main()
