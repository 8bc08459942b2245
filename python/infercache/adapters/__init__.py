"""The cache behind the interfaces of other libraries: switching over to it is one line.

`infercache.adapters.langchain` and `infercache.adapters.litellm`; each needs its library, and neither is imported until
it is asked for.
"""

from __future__ import annotations
