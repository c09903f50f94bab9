"""Why an installation failed, in one line, and what to do about it: read from pip's own log."""

from __future__ import annotations

import re
import sys

ANOTHER_PYTHON = (
    "'Use this Python...' takes another one, 3.10 to 3.13, that has all packages already: 'pip install' of the "
    "extension's repository brings them."
)
MIRROR = (
    "If only a mirror of the package index can be reached: 'python setup_env.py install --cuda auto' in the "
    "extension's repository asks no other one, and makes a Python for 'Use this Python...'. "
)
OFFLINE = (
    "Without a network: on a machine with one, the same system and the same Python ({python}), run "
    "'python -m pip download -d wheels -r requirements.txt' with the module's requirements.txt, copy the folder "
    "here, and choose it under 'Wheels folder'."
)
NETWORK = (
    "Check the network. Behind a proxy set HTTPS_PROXY; behind SSL inspection set SSL_CERT_FILE and PIP_CERT to "
    "your organisation's certificate file; then start Slicer again. "
)
UNREACHABLE = (
    r"NewConnectionError|NameResolutionError|Failed to (establish|resolve)|getaddrinfo|Connect\w*Timeout|"
    r"ConnectionError|Read ?timed? ?out|Network is unreachable|Connection (refused|reset|aborted)|"
    r"Max retries exceeded|No route to host"
)


def explain(log: str, step: str, wheels: str, index: str, python_version: str) -> tuple[str, str]:
    """(what went wrong, what to do).

    Args:
        log: what this installation has logged.
        step: the step that failed: lock, pip, probe, or "" if the process itself ended.
        wheels: the folder that was to serve instead of a network, or "".
        index: PyTorch's own index, if the plan uses it, or "".
        python_version: of the Python that was to run the engine.
    """
    offline = OFFLINE.format(python=python_version)
    missing = re.search(r"No matching distribution found for ([A-Za-z0-9._-]+)", log)
    if step == "lock":
        return "another installation of the engine is running", "Wait until it has ended."
    if re.search(r"No space left on device|Errno 28\b|not enough space on the disk|WinError 112", log):
        return "the disk is full", "Make room and install again, or choose a folder on a larger disk."
    if re.search(r"enable-long-paths|Windows Long Path|WinError 206", log):
        return "Windows refuses paths this long", "Choose a shorter folder, such as C:\\pgpsam."
    if step == "probe":
        return f"all is installed, but the engine does not start: {last_line(log)}", _probe_hint(log)
    if wheels and missing:
        return f"{wheels} holds no {missing[1]} for this system and Python {python_version}", offline
    if re.search(r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerification", log):
        return "the package index's certificate is not trusted here", NETWORK + offline
    if re.search(r"ProxyError|Tunnel connection failed|407 Proxy", log):
        return "the proxy refuses the package index", NETWORK + offline
    nothing_offered = "from versions: none" in log and "require a different python" not in log
    if re.search(UNREACHABLE, log, re.IGNORECASE) or (nothing_offered and not wheels):
        place = f" ({index})" if index and index in last_command(log) else ""
        return f"the package index is out of reach{place}", NETWORK + (MIRROR if index else "") + offline
    if missing:
        return f"the package index has no {missing[1]} for this system and Python", ANOTHER_PYTHON
    if "No module named pip" in log:
        return "this Python has no pip", f"Run 'python -m ensurepip' with it. {ANOTHER_PYTHON}"
    if re.search(r"PermissionError|Errno 13\b|Access is denied|WinError 5\b", log):
        return "a file could not be written", "Close programs that use the engine, or choose another folder."
    return (
        f"the installation failed: {last_line(log) or 'it ended without a word'}",
        "Install again; if it fails again, see the log.",
    )


def last_command(log: str) -> str:
    """The part of the log since the last command was started."""
    return log[log.rfind("\n$ ") :]


def last_line(log: str) -> str:
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")


def _probe_hint(log: str) -> str:
    if sys.platform == "win32" and re.search(r"DLL load failed|WinError", log):
        return "Install Microsoft's Visual C++ Redistributable (x64) and install again."
    if "cannot open shared object file" in log:
        return "Install the system package that holds this library and install again."
    return f"Repair the engine. {ANOTHER_PYTHON}"
