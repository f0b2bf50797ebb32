"""`python -m src.webui` from a checkout: the command of open_supir.commands.webui."""

from open_supir.commands.webui import main

if __name__ == "__main__":
    main()
