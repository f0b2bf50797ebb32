"""`python -m src.fit_degradation`: the command of open_supir.commands.fit_degradation."""

from open_supir.commands.fit_degradation import main

if __name__ == "__main__":
    main()
