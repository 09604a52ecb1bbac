"""The only way in: an adapter's folder against one base, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from adapterhub.adapter._base import BaseSignature
from adapterhub.adapter._build import build
from adapterhub.adapter._config import read_config
from adapterhub.adapter._files import (
    CONFIG,
    FORMAT,
    SEAL,
    STACKED,
    WEIGHTS,
    FolderBytes,
    content_hash,
    parse_json,
    read_folder,
    read_seal,
    write_json,
)
from adapterhub.adapter._fit import fit
from adapterhub.adapter._options import HEAD_KINDS, malformed_faults, unsupported_faults
from adapterhub.adapter._supported import METHODS
from adapterhub.adapter._tensors import read_header
from adapterhub.adapter._types import Adapter
from adapterhub.errors import IncompatibleAdapterError, IntegrityError

__all__ = ["read_adapter", "seal"]


def read_adapter(folder: Path, base: BaseSignature, *, sha256: str | None = None, adopt: bool = False) -> Adapter:
    """Read an adapter and check all of it against a base; only safetensors and JSON are opened.

    Each file is read and hashed once. The hashes come first, then the base's id and fingerprint, then every option of
    the configuration, every key, shape and dtype in the header, and last every value.

    Args:
        folder: The adapter's folder, as PEFT saves it, with the `adapterhub.json` of `seal`.
        base: The base it shall run on.
        sha256: The content hash it must have.
        adopt: Also accept a plain PEFT folder without `adapterhub.json`. Its configuration must name the base's id;
            that its base had the same weights is then not proven, and the adapter's `fingerprint` is empty.

    Returns:
        The adapter. Its tensors are float32, on the CPU and may be views on one buffer: do not write to them.

    Raises:
        IntegrityError: If a file is missing, cut off, or not the one that was sealed or asked for.
        IncompatibleAdapterError: If it does not fit; the message lists every mismatch.
    """
    folder = Path(folder)
    files = read_folder(folder)
    if sha256 is not None and files.content_hash != sha256:
        raise IntegrityError(
            f"{folder} should have the content hash {sha256}. Found {files.content_hash}. Fetch the adapter again."
        )
    fields = parse_json(files.config, str(folder / CONFIG))
    if files.seal is not None:
        sealed = read_seal(folder, files)
        identity = _seal_faults(sealed, base)
    elif adopt:
        identity = _adoption_faults(fields, base)
    else:
        raise IntegrityError(
            f"{folder}: {SEAL} is missing. Seal the adapter against its base with `adapterhub.adapter.seal`, or read "
            "it with `adopt=True`."
        )
    return _checked(folder, files, fields, base, identity, proven=files.seal is not None and not identity)


def seal(folder: Path, base: BaseSignature, stack: Mapping[str, str] | None = None) -> str:
    """Bind an adapter to the base it was trained on: write `adapterhub.json` beside it.

    Args:
        folder: The adapter's folder, as PEFT saves it.
        base: The base it was trained on.
        stack: The adapters below it while it was trained, from the lowest up: content hash by task name.

    Returns:
        The content hash of the sealed folder.

    Raises:
        IntegrityError: If a file is missing or cut off.
        IncompatibleAdapterError: If the adapter does not fit the base; nothing is written.
    """
    folder = Path(folder)
    files = read_folder(folder)
    _checked(folder, files, parse_json(files.config, str(folder / CONFIG)), base, [], proven=True)
    record: dict[str, object] = {
        "format": STACKED if stack else FORMAT,
        "base_model": base.model_id,
        "fingerprint": base.fingerprint,
        "files": {name: files.hashes[name] for name in (CONFIG, WEIGHTS)},
    }
    if stack:
        record["stack"] = [{"task": name, "sha256": sha256} for name, sha256 in stack.items()]
    write_json(folder / SEAL, record)
    return content_hash(folder)


def _checked(
    folder: Path,
    files: FolderBytes,
    fields: Mapping[str, object],
    base: BaseSignature,
    identity: list[str],
    *,
    proven: bool,
) -> Adapter:
    """The adapter, once nothing is left to complain about."""
    header = read_header(files.weights, str(folder / WEIGHTS))
    malformed = malformed_faults(fields)
    if malformed:
        # Without a known method and sound options there is no telling which keys should be there.
        raise IncompatibleAdapterError(str(folder), _name(base.model_id), identity + malformed)
    config = read_config(fields, METHODS[str(fields["peft_type"])].options, HEAD_KINDS)
    found = (fit if header.remembered else fit.__wrapped__)(header, config, base)
    faults = [*identity, *unsupported_faults(fields), *found.faults, *(() if proven else found.unproven)]
    if faults:
        raise IncompatibleAdapterError(str(folder), _name(base.model_id), faults)
    parts = build(files.weights, header, found.layout, config)
    if parts.faults:
        raise IncompatibleAdapterError(str(folder), _name(base.model_id), parts.faults)
    return Adapter(
        source=str(folder),
        method=config.method,
        base_model=base.model_id,
        fingerprint=base.fingerprint if proven else "",
        sha256=files.content_hash,
        modules=MappingProxyType(parts.modules),
        scalings=MappingProxyType(parts.scalings),
        norms=MappingProxyType(parts.norms),
        head=parts.head,
        meta=MappingProxyType(dict(config.options)),
    )


def _seal_faults(sealed: Mapping[str, object], base: BaseSignature) -> list[str]:
    faults = []
    if sealed.get("base_model") != base.model_id:
        faults.append(f"base_model should be {_name(base.model_id)}. Found {_name(sealed.get('base_model'))}.")
    if sealed.get("fingerprint") != base.fingerprint:
        faults.append(f"fingerprint should be {base.fingerprint}. Found {sealed.get('fingerprint')}. {_remedy(base)}")
    return faults


def _remedy(base: BaseSignature) -> str:
    if base.quantised:
        return (
            "The base is quantised: call `describe_base` before it is, and give what it returns to the engine as "
            "`base=`."
        )
    return "The adapter was trained on other weights."


def _adoption_faults(fields: Mapping[str, object], base: BaseSignature) -> list[str]:
    found = fields.get("base_model_name_or_path") or ""
    if found == base.model_id or _id_of(str(found)) == base.model_id:
        return []
    return [f"base_model_name_or_path should be {_name(base.model_id)}. Found {_name(found)}."]


def _id_of(folder: str) -> str | None:
    """The id that a base's folder states of itself: PEFT writes the folder from which the base was loaded."""
    note = Path(folder) / SEAL
    if not note.is_file():
        return None
    return str(parse_json(note.read_bytes(), str(note)).get("id", ""))


def _name(model_id: object) -> str:
    return str(model_id) if model_id else "a model without an id"
