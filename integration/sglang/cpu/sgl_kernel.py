"""Stands in for SGLang's compiled kernels, of which there are none for CPUs: whatever is asked for cannot be called.

SGLang looks for its operators before it uses them and falls back to torch where they are missing.
"""


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_args, **_kwargs):
        raise NotImplementedError(f"sgl_kernel.{name}: no kernel for CPUs")

    return missing
