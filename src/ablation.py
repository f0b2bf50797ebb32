"""`python -m src.ablation` from a checkout: the command of open_supir.commands.ablation."""

from open_supir.commands.ablation import main

if __name__ == "__main__":
    main()
