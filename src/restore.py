"""`python -m src.restore` from a checkout: the command of open_supir.commands.restore."""

from open_supir.commands.restore import main

if __name__ == "__main__":
    main()
