"""The one part of kvtier that is compiled; everything else about the package is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "kvtier.codec._planes",
            ["kvtier/codec/_planes.c", "kvtier/codec/_literals.c", "kvtier/codec/_reads.c"],
            depends=["kvtier/codec/_literals.h", "kvtier/codec/_reads.h"],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,  # without a compiler numpy does the same, more slowly: kvtier doctor says which
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
