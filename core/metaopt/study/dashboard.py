"""optuna-dashboard on a study's own storage: what users know from Optuna works on a run folder."""

import importlib.util
import logging
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

from metaopt.errors import UserError
from metaopt.study.folder import refuse_links
from metaopt.study.storage import JOURNAL, open_storage

log = logging.getLogger(__name__)


class Silent(WSGIRequestHandler):
    """Writes no line for each request."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def serve(folder: Path, host: str, port: int, storage: str | None = None) -> None:
    """Serve the dashboard until the user interrupts it. Raises UserError where it is not installed, or cannot start.

    Port 0 takes any free one. Only this machine can reach 127.0.0.1; the dashboard asks nobody for a password.
    """
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise UserError("optuna-dashboard is not installed; pip install 'metaopt-fewshot[dashboard]' brings it")
    if storage is None and not (folder / JOURNAL).exists():
        raise UserError(f"{folder}: no {JOURNAL} here; give the folder of a run, such as runs/quickstart")
    from optuna_dashboard import wsgi

    refuse_links(folder)
    app = wsgi(open_storage(folder, storage))
    try:
        server = make_server(host, port, app, handler_class=Silent)
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}, port {port} ({error.strerror}); give another with --port, or 0 for any free one"
        ) from None
    with server:
        print(f"http://{host}:{server.server_port}/ shows the trials of {folder}; Ctrl-C ends it", flush=True)  # noqa: T201
        server.serve_forever()
