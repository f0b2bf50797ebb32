"""Serving the page: on this machine by default, without contacting any other."""

import os
from pathlib import Path
from typing import Any

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PASSWORD = "OPEN_SUPIR_PASSWORD"


def check_access(host: str) -> str | None:
    """Import Gradio, without its analytics; return the page's password, if one is set.

    Raises:
        ValueError: Gradio is not installed, or `host` is reachable from other machines and no
            password is set.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("the page needs gradio: pip install -e '.[web]'") from error
    password = os.environ.get(PASSWORD)
    if host not in LOOPBACK and not password:
        raise ValueError(f"host={host} is reachable by others: set {PASSWORD} first")
    return password


def serve(
    page: Any,
    *,
    host: str,
    port: int | None,
    queue: int,
    max_file_mb: int,
    open_browser: bool,
    password: str | None,
    style: Path,
    script: Path,
    **options: Any,
) -> None:
    """Serve a page with a style sheet and a JavaScript function that runs once it is loaded;
    `options` are passed to Gradio's launch.
    """
    page.queue(max_size=queue, default_concurrency_limit=1)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=open_browser,
        max_file_size=f"{max_file_mb}mb",
        css_paths=style,
        js=script.read_text(encoding="utf-8"),
        auth=("open-supir", password) if password else None,
        **options,
    )
