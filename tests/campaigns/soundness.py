"""What must hold after every campaign."""

from tests.server import Server


def sound(server: Server) -> None:
    """No orphans, a whole audit chain, no traceback in the log."""
    assert server.command("fsck").returncode == 0
    assert server.command("audit", "verify").returncode == 0
    assert "Traceback" not in (server.folder / "server.log").read_text()
