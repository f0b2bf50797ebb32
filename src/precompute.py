"""`python -m src.precompute` from a checkout: the command of open_supir.commands.precompute."""

from open_supir.commands.precompute import main

if __name__ == "__main__":
    main()
