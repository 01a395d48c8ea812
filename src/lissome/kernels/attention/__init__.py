"""Block-sparse attention: what is visible (`selection`), the plain way (`reference`), torch a few tiles at a time (`chunked`), and C++ (`native`)."""
