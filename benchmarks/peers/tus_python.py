"""The Python peers: python tus_python.py {tuspyserver|aiohttp-tus} PORT FOLDER."""

import sys
from pathlib import Path


def serve_tuspyserver(port: int, folder: Path) -> None:
    """tuspyserver under uvicorn, as its README runs it."""
    import uvicorn
    from fastapi import FastAPI
    from tuspyserver import create_tus_router

    app = FastAPI()
    app.include_router(create_tus_router(prefix="files", files_dir=str(folder)))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def serve_aiohttp_tus(port: int, folder: Path) -> None:
    """aiohttp-tus, whose chunks are bounded by client_max_size."""
    from aiohttp import web
    from aiohttp_tus import setup_tus

    app = setup_tus(
        web.Application(client_max_size=8 * 1024**3),
        upload_path=folder,
        upload_url="/files",
        allow_overwrite_files=True,
    )
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    name, port, folder = sys.argv[1:]
    {"tuspyserver": serve_tuspyserver, "aiohttp-tus": serve_aiohttp_tus}[name](int(port), Path(folder))
