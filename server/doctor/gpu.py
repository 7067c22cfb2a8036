"""NVIDIA's GPUs and driver, and whether torch's build can use them.

The driver is asked through its own library, and torch's build is read from its files.
"""

import ctypes
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from server.doctor.finding import Finding, Health

_DRIVER = "libcuda.so.1"
_NAME_BYTES = 128
_NVIDIA = "0x10de"
_DISPLAY = "0x03"
"""The beginning of the PCI classes of GPUs."""
_WITH_CUDA = "pip install --force-reinstall torch"


@dataclass(frozen=True, slots=True)
class Driver:
    """What NVIDIA's driver says.

    Attributes:
        cuda: the newest version of CUDA that it runs, such as (12, 8).
        gpus: name and bytes of memory of each GPU that this process may use.
    """

    cuda: tuple[int, int]
    gpus: tuple[tuple[str, int], ...]


class DriverProblem(Exception):
    """The driver does not work. `str(problem)` is one line."""


def gpu(device: str) -> Finding:
    """Whether the GPU is of use, where `device` is what the settings want."""
    if device == "cpu":
        return Finding("GPU", "ok", "not used because the device is set to cpu")
    unusable: Health = "broken" if device.startswith("cuda") else "limited"
    try:
        driver = ask_driver()
    except DriverProblem as problem:
        return Finding("GPU", unusable, str(problem), "install NVIDIA's driver again, then restart")
    if driver is None or not driver.gpus:
        return _without(driver, device)
    names = ", ".join(f"{name} ({size / (1 << 30):.0f} GiB)" for name, size in driver.gpus)
    lack = _torch_problem(driver)
    if lack is not None:
        reason, fix = lack
        return Finding("GPU", unusable, f"{names} cannot be used: {reason}", fix)
    if importlib.util.find_spec("triton") is None:
        return Finding(
            "GPU",
            "limited",
            f"{names}, without Triton, so models run more slowly on it",
            "pip install 'tandem-server[gpu]'",
        )
    shown = ".".join(map(str, driver.cuda))
    return Finding("GPU", "ok", f"{names}, driver for CUDA {shown}, torch for {torch_cuda()}")


def ask_driver() -> Driver | None:
    """What the driver says; None without a driver.

    Raises:
        DriverProblem: it is installed and does not work.
    """
    try:
        cuda = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    code = cuda.cuInit(0)
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    newest = (version.value // 1000, version.value % 1000 // 10)
    if code == _NO_DEVICE:
        return Driver(newest, ())
    if code:
        raise DriverProblem(f"NVIDIA's driver does not start (its error {code})")
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return Driver(newest, tuple(_gpu_at(cuda, index) for index in range(count.value)))


_NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE."""


def _gpu_at(cuda: ctypes.CDLL, index: int) -> tuple[str, int]:
    device, size = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, _NAME_BYTES, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return name.value.decode(errors="replace"), size.value


def torch_cuda() -> str | None:
    """The version of CUDA that torch was built for; None for a build without it, or without
    torch."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        text = Path(folder, "version.py").read_text()
        found = re.search(r"^cuda\b.*= '([\d.]+)'$", text, re.MULTILINE)
        return found[1] if found else None
    return None


def _without(driver: Driver | None, device: str) -> Finding:
    """The finding where this process may use no GPU."""
    if device.startswith("cuda"):
        fix = "tandem serve --device auto, which uses the CPU if there is no GPU"
        return Finding("GPU", "broken", f"none is usable, but the device is set to {device}", fix)
    if driver is not None and _is_there():
        fix = "unset CUDA_VISIBLE_DEVICES, if it is set"
        return Finding("GPU", "limited", "NVIDIA's driver reports none of this machine's GPUs", fix)
    if _is_there():
        return Finding(
            "GPU",
            "limited",
            "an NVIDIA GPU without its driver, so models run on the CPU",
            "install NVIDIA's driver (https://www.nvidia.com/drivers), then restart",
        )
    return Finding("GPU", "ok", "no NVIDIA GPU, so models run on the CPU")


def _torch_problem(driver: Driver) -> tuple[str, str] | None:
    """Why torch cannot use the driver's GPUs, and the fix."""
    built_for = torch_cuda()
    if built_for is None:
        version = importlib.metadata.version("torch")
        return f"torch {version} is a build without CUDA", _WITH_CUDA
    major = int(built_for.partition(".")[0])
    if driver.cuda[0] < major:
        newest = ".".join(map(str, driver.cuda))
        return (
            f"torch is built for CUDA {built_for}, and the driver runs CUDA up to {newest}",
            f"install a driver for CUDA {major} or newer (https://www.nvidia.com/drivers)",
        )
    return None


def _is_there(bus: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether the machine has an NVIDIA GPU, with or without a driver."""
    for device in bus.glob("*"):
        try:
            vendor, kind = ((device / name).read_text() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor.strip() == _NVIDIA and kind.startswith(_DISPLAY):
            return True
    return False
