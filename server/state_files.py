"""Files the server makes for itself and keeps from others: the token secret, a certificate."""

import contextlib
import os
import secrets
from pathlib import Path

from server.errors import SettingsError
from server.settings import SECRET_LENGTH_AT_LEAST, AuthSettings


def state_folder(settings: AuthSettings) -> Path:
    """Where they lie; made when first needed."""
    if settings.state_dir:
        return Path(settings.state_dir)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "sightline"


def unwritable(folder: Path) -> str:
    """Why nothing can be written there; empty where it can. Makes nothing: folders that are not
    there yet are judged by the nearest one that is."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        return f"{nearest} is no folder"
    return "" if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} cannot be written"


def read_private(path: Path, what: str) -> str | None:
    """The content, None if there is no such file; refuses what others on the machine can read."""
    try:
        if path.stat().st_mode & 0o077:
            raise SettingsError(f"{what}: {path} can be read by others; chmod 600 it")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{what}: {path} cannot be read: {_reason(error)}") from None


def write_private(path: Path, text: str, what: str) -> None:
    """Whole or not at all, readable by its owner alone from the first byte on; on the disk when
    it returns. Blocks."""
    waiting = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = os.open(waiting, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(number)
        waiting.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            waiting.unlink()
        raise SettingsError(
            f"{what}: {path} cannot be written: {_reason(error)}; state_dir names another folder"
        ) from None


def token_secret(settings: AuthSettings) -> str:
    """The given secret, or the one kept here, made when there is none yet."""
    if settings.token_secret:
        secret = settings.token_secret
    else:
        file = state_folder(settings) / "token.secret"
        kept = read_private(file, "token_secret")
        if kept is None:
            # Two that start at once agree on what is then on the disk.
            write_private(file, secrets.token_urlsafe(48) + "\n", "token_secret")
            kept = read_private(file, "token_secret")
        secret = (kept or "").strip()
    if len(secret) < SECRET_LENGTH_AT_LEAST:
        raise SettingsError(
            f"token_secret: shorter than {SECRET_LENGTH_AT_LEAST} characters, it could be guessed"
        )
    return secret


def api_key_rows(settings: AuthSettings) -> tuple[str, ...]:
    """The rows of the settings and of the file, without comments."""
    rows = list(settings.api_keys)
    if settings.api_keys_file:
        text = read_private(Path(settings.api_keys_file), "api_keys_file")
        if text is None:
            raise SettingsError(f"api_keys_file: {settings.api_keys_file} does not exist")
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        rows += [line for line in lines if line]
    return tuple(rows)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "not UTF-8 text"
