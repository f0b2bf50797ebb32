"""`python -m src.degrade` from a checkout: the command of open_supir.commands.degrade."""

from open_supir.commands.degrade import main

if __name__ == "__main__":
    main()
