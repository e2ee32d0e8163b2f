"""What could be run and must not be: settings, and places on the disk, under which the promises would not hold.

`refuse_unsafe` judges the settings alone, `refuse_unsafe_places` what lies on the disk. Each refusal names the key and
says why; what is merely unwise is a warning (see config.py). Changes nothing.
"""

import ipaddress
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from server.errors import ConfigurationError
from server.settings import ForwardDestination, Settings, is_loopback

SECRET_CHARACTERS = 16
"""A webhook secret that is shorter can be found by trying: its owner signs what we are said to have told."""
FOR_OURSELVES = ("keys", "metrics", "spool", "tls")
"""Folders beside the database: what lies in them is made, read and cleared by rules of its own."""
Refusal = tuple[str, str]
"""(the key, why it is refused)."""


def refuse_unsafe(settings: Settings) -> None:
    """ConfigurationError for the first setting that is unsafe."""
    for judge in (_open_to_all, _believes_everybody, _tells_secrets, _goes_in_circles, _listens_twice):
        for key, why in judge(settings):
            raise ConfigurationError(f"{key}: {why}")


def _open_to_all(settings: Settings) -> Iterator[Refusal]:
    """Without tokens only those at this machine may come in (contract §11)."""
    if settings.auth.mode != "none":
        return
    http, dicom = settings.http, settings.dicom
    listening = {"http.host": http.host} | ({"dicom.host": dicom.host} if dicom.enabled else {})
    for key, host in listening.items():
        if not is_loopback(host):
            yield "auth.mode", f'"none" lets everybody in, so it is taken on loopback only, and {key} is {host}'
    if http.trusted_proxies:
        yield "auth.mode", ('"none" lets everybody in whom a proxy lets through, and http.trusted_proxies names one: '
                            'use "token"')
    if "*" in http.cors_origins:
        yield "auth.mode", '"none" with http.cors_origins = ["*"] lets every page of the web act here: name the pages'


def _believes_everybody(settings: Settings) -> Iterator[Refusal]:
    """A list of who is believed that holds every address is no list."""
    for text in settings.http.trusted_proxies:
        if _is_everybody(text):
            yield "http.trusted_proxies", (f"{text} is every address: whoever calls could say to be anybody, "
                                           "from anywhere")
    for place, peer in enumerate(settings.dicom.peers):
        for text in peer.allow_from:
            if _is_everybody(text):
                yield f"dicom.peers.{place}.allow_from", (
                    f"{text} is every address: an AE title is no secret, so {peer.ae_title} would be anybody")
    titles = [peer.ae_title for peer in settings.dicom.peers]
    for title in {title for title in titles if titles.count(title) > 1}:
        yield "dicom.peers", f"{title} is given twice: what is meant for one could go to the other"


def _is_everybody(network: str) -> bool:
    return ipaddress.ip_network(network, strict=False).prefixlen == 0


def _tells_secrets(settings: Settings) -> Iterator[Refusal]:
    """What is a secret must be one, and must not stand where it is shown."""
    urls = {"http.public_url": settings.http.public_url} | {
        f"webhooks.{place}.url": one.url for place, one in enumerate(settings.webhooks)}
    for key, url in urls.items():
        if "@" in url.partition("://")[2].partition("/")[0]:
            yield key, "holds a name or a password, and URLs are shown, stored and logged: leave it out"
    for place, one in enumerate(settings.webhooks):
        if 0 < len(one.secret.removeprefix("whsec_")) < SECRET_CHARACTERS:
            yield f"webhooks.{place}.secret", (f"is so short that it can be guessed: {SECRET_CHARACTERS} characters "
                                               "or more, such as those of `openssl rand -base64 24`")


def _goes_in_circles(settings: Settings) -> Iterator[Refusal]:
    for place, one in enumerate(settings.forward.destinations):
        if _is_ourselves(one, settings):
            yield f"forward.destinations.{place}", (
                f"{one.name} is this server itself: what it stores would be sent to it again")


def _is_ourselves(destination: ForwardDestination, settings: Settings) -> bool:
    dicom = settings.dicom
    if not dicom.enabled or destination.port != dicom.port:
        return False
    hears_loopback = is_loopback(dicom.host) or dicom.host in ("0.0.0.0", "::")  # noqa: S104 - compared only
    return destination.host == dicom.host or (is_loopback(destination.host) and hears_loopback)


def _listens_twice(settings: Settings) -> Iterator[Refusal]:
    http, dicom = settings.http, settings.dicom
    if dicom.enabled and http.port == dicom.port != 0:
        yield "dicom.port", f"{dicom.port} is http.port too: which of the two listens would be left to chance"


def refuse_unsafe_file(path: Path) -> None:
    """ConfigurationError for a configuration that others may write: they would say where images go."""
    if path.stat().st_mode & stat.S_IWOTH:
        raise ConfigurationError(f"--config: every user of this machine may write {path}: chmod o-w it")


def refuse_unsafe_places(settings: Settings) -> None:
    """ConfigurationError for places where others could put, change or take away what is stored; makes nothing."""
    data, blobs = settings.data_path.resolve(), settings.blobs_path.resolve()
    for name in FOR_OURSELVES:
        if (data / name) in (blobs, *blobs.parents):
            raise ConfigurationError(f"storage.blobs: {blobs} is for the server's {name}: choose another folder")
    for key, place in {"storage.database": data, "storage.blobs": blobs}.items():
        _refuse_open_to_writers(key, place)
    _refuse_reserve_beyond_the_disk(settings)


def _refuse_open_to_writers(key: str, place: Path) -> None:
    """The folder itself must be writable for nobody else; one above may, when only owners may rename in it (sticky)."""
    for folder in (place, *place.parents):
        if not folder.exists():
            continue
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and (folder == place or not mode & stat.S_ISVTX):
            raise ConfigurationError(
                f"{key}: every user of this machine may write into {folder}, and so change what is stored: "
                f"chmod o-w it, or choose another folder")


def _refuse_reserve_beyond_the_disk(settings: Settings) -> None:
    there = next(folder for folder in (settings.blobs_path, *settings.blobs_path.parents) if folder.exists())
    disk = os.statvfs(there)
    size_bytes = disk.f_blocks * disk.f_frsize
    if settings.uploads.reserve_bytes >= size_bytes > 0:
        raise ConfigurationError(
            f"uploads.reserve_bytes: {settings.uploads.reserve_bytes} is more than the whole disk of {there} holds "
            f"({size_bytes}), so nothing could ever be taken")
