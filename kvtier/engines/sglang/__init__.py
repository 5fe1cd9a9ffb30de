"""SGLang adapter: a HiCacheStorage backend on top of kvtier's pages."""
