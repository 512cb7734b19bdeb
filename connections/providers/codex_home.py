"""Where a Codex process lives: a private directory, a configuration without tools, nothing else.

Each process has a home of its own, made for it and removed with it. What the binary brings along
that could act (a shell, patches, agents, plug-ins, a browser, its own updates) is switched off; the
models' list is the binary's own with the tools taken out of it, made once for each binary.

The environment of the process is `environment()`, whole: no variable of ours is passed on, so none
of the binary's (`OPENAI_API_KEY`, `CODEX_…`) can be set from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

CATALOGUE_SECONDS = 30.0
PROVIDER = "patchbay"  # the name of our relay in the process's configuration

_OFF = (
    *("apps", "auth_elicitation", "browser_use", "code_mode_host", "computer_use", "goals"),
    *("hooks", "image_generation", "in_app_browser", "memories", "multi_agent"),
    *("plugin_sharing", "plugins", "remote_plugin", "shell_snapshot", "shell_tool"),
    *("skill_mcp_dependency_install", "skill_search", "sleep_tool", "tool_call_mcp_elicitation"),
    *("tool_suggest", "unified_exec", "view_image", "workspace_dependencies"),
    # A steered message goes in after the reply that is being written, which it would cut off.
    "instant_interrupt",
    # Without this a refused connection is tried again for ever.
    "unbounded_connection_retries",
)
# What takes the tools out of a model's entry; the rest of it stays as the binary has it.
_NO_TOOLS: Mapping[str, Any] = {
    "apply_patch_tool_type": None,
    "multi_agent_version": None,
    "experimental_supported_tools": [],
    "supports_search_tool": False,
}


class HomeError(Exception):
    """The home can't be made; the text is for admins."""


@dataclass(frozen=True, slots=True)
class Home:
    """`root` holds `home` and `cwd`, an empty directory; `lock` is held while it is in use."""

    root: Path
    lock: int

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def cwd(self) -> Path:
        return self.root / "cwd"

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "CODEX_HOME": str(self.home),
            "TMPDIR": str(self.root),
            "PATH": "/nonexistent",  # at its start the binary runs what it finds there
            "LANG": "C.UTF-8",
        }

    def remove(self) -> None:
        """Blocks for some file operations."""
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self.lock)


def make_home(configuration: Mapping[str, Any]) -> Home:
    """Blocks for some file operations. Raises `HomeError`."""
    try:
        folder = _folder("homes")
        _sweep(folder)
        root = Path(tempfile.mkdtemp(prefix="codex-", dir=folder))  # mode 0700
        lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)  # at most while another one looks at it
        home = Home(root, lock)
        home.home.mkdir(mode=0o700)
        home.cwd.mkdir(mode=0o700)
        config = home.home / "config.toml"
        config.write_text(
            "".join(
                f"{name} = {json.dumps(value, ensure_ascii=False)}\n"
                for name, value in configuration.items()
            ),
            encoding="utf-8",
        )
        config.chmod(0o600)
    except OSError as error:
        raise HomeError(
            f"The directory for Codex can't be made ({type(error).__name__})."
        ) from None
    return home


def _folder(name: str) -> Path:
    folder = Path(settings.DATA_DIR) / "codex" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.parent.chmod(0o700)
    return folder


def _sweep(folder: Path) -> None:
    """Removes the homes of workers that were killed: nobody holds their locks."""
    for root in folder.iterdir():
        with contextlib.suppress(OSError):
            lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A home that is being made has no lock for a moment, and nothing in it.
                if any(root.iterdir()):
                    shutil.rmtree(root, ignore_errors=True)
            finally:
                os.close(lock)


def for_replies(catalogue: Path, base_url: str, *, idle_seconds: float) -> dict[str, Any]:
    """The configuration of a process whose requests go to `base_url`."""
    return {
        "cli_auth_credentials_store": "ephemeral",  # in memory; "file" would write the token
        "model_provider": PROVIDER,
        "model_catalog_json": str(catalogue),
        # What is too long is our affair: it would ask the model for a summary.
        "model_auto_compact_token_limit": 1_000_000_000,
        # Its other calls go nowhere: the relay passes on what asks for a reply, and nothing else.
        "chatgpt_base_url": f"{base_url}/backend-api",
        "features.enable_request_compression": False,
        "web_search": "disabled",
        "tools.experimental_request_user_input.enabled": False,
        "agents.enabled": False,
        **{f"features.{name}": False for name in _OFF},
        # Nothing about this machine goes into the conversation.
        "include_environment_context": False,
        "include_permissions_instructions": False,
        "include_apps_instructions": False,
        "skills.bundled.enabled": False,
        "skills.include_instructions": False,
        "project_doc_max_bytes": 0,
        "history.persistence": "none",
        "check_for_update_on_startup": False,
        "analytics.enabled": False,
        f"model_providers.{PROVIDER}.name": "Patchbay",
        f"model_providers.{PROVIDER}.base_url": base_url,
        f"model_providers.{PROVIDER}.wire_api": "responses",
        f"model_providers.{PROVIDER}.requires_openai_auth": True,
        f"model_providers.{PROVIDER}.supports_websockets": False,
        # A retry would begin the reply again; the relay has the time limits.
        f"model_providers.{PROVIDER}.request_max_retries": 0,
        f"model_providers.{PROVIDER}.stream_max_retries": 0,
        f"model_providers.{PROVIDER}.stream_idle_timeout_ms": round((idle_seconds + 60) * 1000),
    }


def for_sign_in(backend: str) -> dict[str, Any]:
    """The configuration of a process that signs somebody in, and does nothing else. The tokens
    stand in its home for a moment: it has no other way to hand them over. `backend` is ChatGPT's,
    "" for the real one."""
    return {
        "cli_auth_credentials_store": "file",
        "web_search": "disabled",
        "agents.enabled": False,
        **{f"features.{name}": False for name in _OFF},
        "skills.bundled.enabled": False,
        "history.persistence": "none",
        "check_for_update_on_startup": False,
        "analytics.enabled": False,
        **({"chatgpt_base_url": backend} if backend else {}),
    }


# -- the models ------------------------------------------------------------------------------------


async def catalogue_of(binary: str) -> Path:
    """The file with the binary's own models, without their tools; made at the first call for this
    binary (about 0.2 s), then found. Raises `HomeError`."""
    path, is_there = _catalogue_path(binary)
    if not is_there:
        await asyncio.to_thread(_write, path, without_tools(await _bundled_models(binary)))
    return path


def _catalogue_path(binary: str) -> tuple[Path, bool]:
    try:
        about = Path(binary).stat()
        folder = _folder("models")
    except OSError as error:
        raise HomeError(f"The Codex binary can't be used ({type(error).__name__}).") from None
    rules = json.dumps(_NO_TOOLS, sort_keys=True)
    of = f"{binary}|{about.st_size}|{about.st_mtime_ns}|{rules}"
    path = folder / f"{hashlib.sha256(of.encode()).hexdigest()[:16]}.json"
    return path, path.exists()


def without_tools(listed: bytes) -> bytes:
    """The binary's list with every model's tools taken out. Raises `HomeError`."""
    try:
        catalogue = json.loads(listed)
        for model in catalogue["models"]:
            model.pop("tool_mode", None)
            model.update(_NO_TOOLS)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HomeError("The Codex binary's list of models can't be read.") from None
    return json.dumps(catalogue).encode()


def _write(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix="new-")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    Path(name).replace(path)


async def _bundled_models(binary: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="codex-") as folder:
        env = {"HOME": folder, "CODEX_HOME": folder, "PATH": "/nonexistent", "LANG": "C.UTF-8"}
        try:
            process = await asyncio.create_subprocess_exec(
                *(binary, "debug", "models", "--bundled"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=env,
                cwd=folder,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise HomeError(f"The Codex binary can't be run ({type(error).__name__}).") from None
        try:
            async with asyncio.timeout(CATALOGUE_SECONDS):
                listed, _ = await process.communicate()
        except TimeoutError:
            raise HomeError("The Codex binary doesn't list its models in time.") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
    if process.returncode:
        raise HomeError("The Codex binary doesn't list its models.")
    return listed
