"""What the machine offers a server: its device, bfloat16, free memory, a free port.

Read once and handed to `plan_serve`, so that a plan is the same wherever a test makes it. The
surprise: in a container the memory that is left is that of its control group, which /proc/meminfo
does not know.
"""

from __future__ import annotations

import platform
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from smollora.errors import SmolloraError
from smollora.serve.environment import Device

FIRST_PORT = 8000
"""vLLM's own default."""
PORTS = 50
"""How many are tried from there on."""
_BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}
"""In /proc/cpuinfo: Intel and AMD, ARM."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides about types and lengths."""

    device: Device
    has_bf16: bool
    """True if the CPU computes bfloat16 itself; of GPUs vLLM knows."""
    free_bytes: int | None
    """Main memory that can be had; None where it is not known."""


def read_machine(device: Device, root: Path = Path("/")) -> Machine:
    """This machine.

    Args:
        device: what vLLM computes on.
        root: where /proc and /sys are.
    """
    flags: set[str] = set()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _text(root / "proc/cpuinfo"), re.M)
    if found:
        flags = set(found[1].split())
    return Machine(device, bool(flags & _BF16_FLAGS), _free_bytes(root))


def _free_bytes(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"), re.M)
    limit, used = (
        _text(root / "sys/fs/cgroup" / name).strip() for name in ("memory.max", "memory.current")
    )
    known = [int(found[1]) * 1024] if found else []
    if limit.isdigit() and used.isdigit():
        known.append(int(limit) - int(used))
    return max(0, min(known)) if known else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def is_free(host: str, port: int) -> bool:
    """True if a server could listen there.

    Raises:
        SmolloraError: the host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if platform.system() != "Windows":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise SmolloraError(f"{port} is no port", "use one from 1024 to 65535") from None
        except PermissionError:
            raise SmolloraError(
                f"port {port} is reserved for the system", "use one from 1024 to 65535"
            ) from None
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno in (99, 49):  # not ours
                raise SmolloraError(
                    f"{host} is no address of this machine",
                    "use --host 127.0.0.1, or 0.0.0.0 for every network that it is on",
                ) from error
            return False
    return True


def choose_port(host: str, wanted: int | None) -> int:
    """The wanted port, or the first free one from 8000 on.

    Raises:
        SmolloraError: it is taken, or none is free.
    """
    if wanted is not None:
        if not is_free(host, wanted):
            raise SmolloraError(
                f"port {wanted} of {host} is taken",
                "stop what listens there, or leave --port out for a free one",
            )
        return wanted
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        if is_free(host, port):
            return port
    raise SmolloraError(
        f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free", "name one with --port"
    )
