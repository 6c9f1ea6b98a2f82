"""What a figure depends on besides config and code: versions, devices, precision. Never a token or a secret."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import lingregions

_PACKAGES = (
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ml-collections",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "tensorflow-datasets",
)
# Only these are recorded: others may hold keys and tokens.
_VARIABLES = (
    "JAX_PLATFORMS",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_NUM_CPU_DEVICES",
    "LIBTPU_INIT_ARGS",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "OMP_NUM_THREADS",
    "XLA_FLAGS",
)


_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")  # in the name of a variable
_PATTERNS = ((re.compile(r"(://)[^/@\s]+@"), r"\1***@"), (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"))


def masked(text: str) -> str:
    """Return a text without what opens a door: passwords in addresses, hub tokens, variables named for one."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name) and not value.startswith("/"):
            text = text.replace(value, "***")
    for pattern, mask in _PATTERNS:
        text = pattern.sub(mask, text)
    return text


def describe(compute: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the environment as plain JSON values. Initialises the JAX backend.

    Args:
      compute: the section of the config that sets dtype and precision of what is computed; it comes before JAX's own.
    """
    chosen = compute or {}
    devices = jax.devices()
    return {
        "lingregions": lingregions.VERSION,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "backend": jax.default_backend(),
        "devices": [f"{device.device_kind} {device.id}" for device in devices],
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "precision": {
            "dtype": chosen.get("dtype", "float32"),
            "parameters": chosen.get("parameters", "float32"),
            "matmul": chosen.get("precision") or _setting("jax_default_matmul_precision") or "default",
            "x64": _setting("jax_enable_x64"),
            "dtype_promotion": _setting("jax_numpy_dtype_promotion"),
        },
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _commit() -> str | None:
    """Return the commit of the checkout that this package runs from, "+changes" if files differ; None without one."""
    root = Path(lingregions.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _setting(name: str) -> Any:
    return getattr(jax.config, name)  # set at run time: jax.config declares no attributes


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
