"""`python -m src.convert` from a checkout: the command of open_supir.commands.convert."""

from open_supir.commands.convert import main

if __name__ == "__main__":
    main()
