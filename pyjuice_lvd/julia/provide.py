"""Provide Julia, for `lvd-juice setup`: through juliacall where the network allows, else from Debian's archive.

The second way unpacks Julia 1.5.3 of Debian 11 (bullseye) into a private prefix, without root and without touching the
system: apt works in a throw-away root whose one source is the machine's own mirror, and believes only what the Debian
archive keyring has signed.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyjuice_lvd.errors import JuliaUnavailableError
from pyjuice_lvd.julia.find import REMEDY, Choice, choose, prefix, probe

SUITE = "bullseye"
KEYRINGS = ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")
# The C and C++ runtime must be the system's own, never an older one beside it; the others only unpack packages.
FROM_SYSTEM = {
    "libc6",
    "libcrypt1",
    "libgcc-s1",
    "libstdc++6",
    "gcc-10-base",
    "dpkg",
    "tar",
    "perl-base",
    "debconf",
}

RESOLVE_SECONDS = 900
APT_SECONDS = 600
LAUNCHER = """#!/bin/sh
# This Julia needs the libraries it came with, above all libunwind: with a newer one every exception is a crash.
here=$(dirname "$(dirname "$(readlink -f "$0")")")
export LD_LIBRARY_PATH="$here/{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
exec "$here/usr/bin/julia" "$@"
"""

Say = Callable[[str], None]


def provide(say: Say) -> Choice:
    """Make sure that a Julia can start; a second run finds what is there. `say` gets a line for each step.

    Raises JuliaUnavailableError, with the reason of each way that failed, if Julia cannot be provided.
    """
    with _lock():
        try:
            return choose()
        except JuliaUnavailableError as nothing_yet:
            reason = _without_remedy(nothing_yet)
            if os.environ.get("LVD_JULIA"):  # the user's own choice: not ours to replace
                raise JuliaUnavailableError(f"{reason}; mend or unset LVD_JULIA") from None
            say(reason)
        ways = {"juliacall": _from_juliacall, "libjulia": _from_debian}
        wanted = os.environ.get("LVD_JULIA_BRIDGE")
        reasons = []
        for bridge, way in ways.items():
            if wanted in (None, "", bridge):
                try:
                    way(say)
                    return choose()
                except JuliaUnavailableError as failure:
                    reasons.append(_without_remedy(failure))
                    say(reasons[-1])
    raise JuliaUnavailableError("; ".join(reasons) + "; install Julia >= 1.10 and put it on PATH")


def _without_remedy(failure: JuliaUnavailableError) -> str:
    """Leave out the advice to run what is running."""
    return str(failure).removesuffix(f"; {REMEDY}")


@contextmanager
def _lock() -> Iterator[None]:
    """One set-up at a time: a second one waits, and then finds what the first has done."""
    folder = prefix().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "setup.lock").open("w")
    except OSError as failure:
        raise JuliaUnavailableError(
            f"{folder}: cannot write there ({failure.strerror}); set XDG_DATA_HOME"
        ) from failure
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _from_juliacall(say: Say) -> None:
    """Let juliapkg find or download a Julia and PythonCall.jl, in a process of its own with a time limit."""
    if importlib.util.find_spec("juliacall") is None:
        raise JuliaUnavailableError("juliacall is not installed")
    say("asking juliacall for a Julia")
    command = [sys.executable, "-P", "-c", "import juliapkg; juliapkg.resolve()"]
    _run(command, "juliacall cannot provide one", seconds=RESOLVE_SECONDS)


def _from_debian(say: Say) -> None:
    """Unpack Debian's Julia beside its place, try it, and only then put it there."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise JuliaUnavailableError(f"Debian's archive: this system has no {tool}")
    target = prefix()
    for left_over in target.parent.glob("unpacking-*"):  # of a set-up that was cut off; we hold the lock
        shutil.rmtree(left_over)
    stage = Path(tempfile.mkdtemp(prefix="unpacking-", dir=target.parent))
    try:
        apt = _apt_root(stage / "apt", say)
        _unpack(apt, stage, say)
        julia = probe(stage / "bin" / "julia", "just unpacked")
        shutil.rmtree(stage / "apt")
        if target.exists():  # broken, or `provide` would have taken it
            target.rename(stage / "broken")
        stage.rename(target)
        shutil.rmtree(target / "broken", ignore_errors=True)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    say(f"Julia {'.'.join(map(str, julia.version))} from Debian's archive is in {target}")


def _apt_root(root: Path, say: Say) -> list[str]:
    """Make a root for apt-get with the first mirror that has bullseye; the command that uses it."""
    keyring = next((path for name in KEYRINGS if (path := Path("/usr/share/keyrings") / name).exists()), None)
    if keyring is None:
        raise JuliaUnavailableError("Debian's archive: found no keyring, want the package debian-archive-keyring")
    for folder in ("lists/partial", "cache/archives/partial"):
        (root / folder).mkdir(parents=True)
    settings = {
        "Dir::Etc::sourcelist": root / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "-",
        "Dir::State::lists": root / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": root / "cache",
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
    }
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in settings.items())]
    failure = None
    for site in _mirrors():
        say(f"asking the Debian mirror {site} for {SUITE}")
        (root / "sources.list").write_text(f"deb [signed-by={keyring}] {site} {SUITE} main\n")
        try:
            _run([*apt, "-oAPT::Update::Error-Mode=any", "update"], f"{site} has no usable {SUITE}")
        except JuliaUnavailableError as error:
            failure = error
        else:
            return apt
    raise failure or JuliaUnavailableError("Debian's archive: apt has no mirror configured")


def _mirrors() -> list[str]:
    """List the sites that this machine's apt is configured with, main archives before -security and -updates.

    `update --print-uris` names them even where no package list was ever fetched, unlike `indextargets`.
    """
    listing = _run(["apt-get", "-q", "update", "--print-uris"], "apt cannot list its sources")
    found = re.findall(r"^'(\S+?)/dists/([^/\s]+)/InRelease'", listing, flags=re.MULTILINE)
    codename = _os_release("VERSION_CODENAME")
    found.sort(key=lambda entry: (entry[1] != codename, "-" in entry[1]))
    return list(dict.fromkeys(site for site, _ in found))


def _os_release(key: str) -> str | None:
    try:
        return platform.freedesktop_os_release().get(key)
    except OSError:
        return None


def _unpack(apt: list[str], stage: Path, say: Say) -> None:
    """Download julia with all that it needs and the system cannot lend, unpack it into `stage`, write the launcher."""
    plan = _run([*apt, "--simulate", "install", "julia"], f"{SUITE} has no Julia for this machine")
    packages = set(re.findall(r"^Inst (\S+)", plan, flags=re.MULTILINE)) - FROM_SYSTEM
    downloads = stage / "apt" / "packages"
    downloads.mkdir()
    say(f"downloading {len(packages)} packages")
    _run([*apt, "download", *sorted(packages)], "the download failed", cwd=downloads)
    for package in sorted(downloads.glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(stage)], f"cannot unpack {package.name}")
    library = next(stage.glob("usr/lib/*/libjulia.so.1"), None)
    if library is None:
        raise JuliaUnavailableError(f"Debian's archive: {SUITE}'s packages hold no libjulia.so.1")
    launcher = stage / "bin" / "julia"
    launcher.parent.mkdir(exist_ok=True)
    launcher.write_text(LAUNCHER.format(libraries=library.parent.relative_to(stage)))
    launcher.chmod(0o755)


def _run(command: list[str], failing: str, *, seconds: float = APT_SECONDS, cwd: Path | None = None) -> str:
    """Return the standard output of a command; JuliaUnavailableError with its last complaint if it fails."""
    try:
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            errors="replace",
        )
    except subprocess.TimeoutExpired as failure:
        raise JuliaUnavailableError(f"{failing}: no answer within {seconds:.0f} s") from failure
    if ran.returncode != 0:
        complaint = (ran.stderr.strip() or ran.stdout.strip() or f"exit status {ran.returncode}").splitlines()[-1]
        raise JuliaUnavailableError(f"{failing}: {complaint}")
    return ran.stdout
