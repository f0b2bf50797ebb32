"""A page to restore photographs in the browser (extra `web`)."""

from open_supir.webui.page import main

if __name__ == "__main__":
    main()
