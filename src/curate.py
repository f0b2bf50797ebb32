"""`python -m src.curate` from a checkout: the command of open_supir.commands.curate."""

from open_supir.commands.curate import main

if __name__ == "__main__":
    main()
