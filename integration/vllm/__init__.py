"""Everything that runs against a real vLLM. A package, so that `import vllm` keeps meaning the engine."""
