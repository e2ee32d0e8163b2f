"""Where each blob has its file; makes the directories for them, durably. Touches no file."""

from pathlib import Path

from storage.blobs.base import BlobKey
from storage.blobs.medium import make_directory, sync_directory
from storage.errors import NotFound


class Layout:
    """Sealed blobs are spread over 256 directories a site; staged ones lie in one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staged_in: set[str] = set()
        self._fanned: set[str] = set()
        make_directory(root)

    def name(self, key: BlobKey) -> str:
        """The file of `key`. NotFound where its words would lead elsewhere: whoever wrote a row may have meant harm."""
        if "/" in key.name or "/" in key.site:
            raise NotFound("no such blob")
        # plain text: a Path costs more than the system call that it is made for
        if key.area == "sealed":
            return f"{self.root}/sealed/site-{key.site}/{key.name[:2]}/{key.name}"
        return f"{self.root}/staging/site-{key.site}/{key.name}"

    def make_staging(self, site: str) -> None:
        """The directory of a site's staged blobs."""
        if "/" in site:
            raise NotFound("no such site")
        if site not in self._staged_in:
            make_directory(self.root / "staging" / f"site-{site}")
            self._staged_in.add(site)

    def make_fan(self, site: str) -> None:
        """The 256 directories of a site's sealed blobs, made at once: one fsync is enough for all of them."""
        if site in self._fanned:
            return
        if "/" in site:
            raise NotFound("no such site")
        parent = self.root / "sealed" / f"site-{site}"
        make_directory(parent)
        for number in range(256):
            (parent / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
        sync_directory(parent)
        self._fanned.add(site)
